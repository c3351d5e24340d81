"""``moe-adapt export RUN --to DIR``: write a run's adapter as a folder that PEFT loads."""

from collections.abc import Sequence
from pathlib import Path

from moe_adapt.training.cli.arguments import CommandParser

__all__ = ["export"]

SPLITS = ("train", "validation", "test")


def export(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``export``.

    Raises:
        UserError: For a mistake in the arguments, a folder that is no run, or a target that is in use.
    """
    options = _parser().parse(argv)

    from moe_adapt.hub.run import export_run  # the training stack: not before the arguments are right

    print(
        export_run(
            options.run,
            options.to,
            form=options.form,
            checkpoint=options.checkpoint,
            calibration=options.calibration,
            gap=options.gap,
            batches=options.batches,
            max_rank=options.max_rank,
            license=options.license,
            overwrite=options.overwrite,
        )
    )


def _parser() -> CommandParser:
    parser = CommandParser("export", "Write a run's adapter as a PEFT folder with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--form",
        choices=("adapter", "experts", "merged"),
        default="adapter",
        help="adapter: experts and router, needs moe-adapt to load (the default); experts: an ordinary LoRA "
        "per expert; merged: one ordinary LoRA. The last two need PEFT alone and lose the router",
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="best (the default), last, or the path of a checkpoint of the run",
    )
    parser.add_argument(
        "--calibration",
        choices=SPLITS,
        default="train",
        help="merged: rows over which gates are averaged (default: train)",
    )
    parser.add_argument(
        "--gap",
        choices=SPLITS,
        default="validation",
        help="merged: rows on which the loss against the routed model is measured (default: validation)",
    )
    parser.add_argument(
        "--batches", type=int, default=32, metavar="N", help="merged: most batches of each (default: 32)"
    )
    parser.add_argument(
        "--max_rank", type=int, metavar="R", help="merged: cut layers of a larger rank to R (default: exact)"
    )
    parser.add_argument("--license", metavar="ID", help="licence to name in the card, such as apache-2.0")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    return parser
