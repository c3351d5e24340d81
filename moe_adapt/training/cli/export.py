"""``moe-adapt export RUN --to DIR``: write a run's adapter as a folder that PEFT loads."""

from collections.abc import Sequence
from pathlib import Path

from moe_adapt.training.cli.arguments import CommandParser

__all__ = ["export"]


def export(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``export``.

    Raises:
        UserError: For a mistake in the arguments, a folder that is no run, or a target that is in use.
    """
    parser = CommandParser("export", "Write a run's adapter as a PEFT folder with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="best (the default), last, or the path of a checkpoint of the run",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    options = parser.parse(argv)

    from moe_adapt.hub.export import export_run  # the training stack: not before the arguments are right

    print(export_run(options.run, options.to, checkpoint=options.checkpoint, overwrite=options.overwrite))
