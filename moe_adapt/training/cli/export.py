"""``moe-adapt export RUN --to DIR``: write a run's adapter for PEFT; ``--to hf://user/name`` pushes it."""

from collections.abc import Sequence
from pathlib import Path

from moe_adapt.errors import UserError
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
    online = options.to.startswith("hf://")
    if options.private and not online:
        raise UserError("--private is for a repository on the Hub (--to hf://user/name).")

    from moe_adapt.hub.remote import push_folder, repository  # not before the arguments are right
    from moe_adapt.hub.run import export_run

    name = repository(options.to) if online else None
    folder = Path(options.to) if name is None else options.run / "export" / name.partition("/")[2]
    print(
        export_run(
            options.run,
            folder,
            form=options.form,
            checkpoint=options.checkpoint,
            calibration=options.calibration,
            gap=options.gap,
            batches=options.batches,
            max_rank=options.max_rank,
            license=options.license,
            overwrite=options.overwrite or online,
        )
    )
    if name is not None:
        print(f"pushed: {push_folder(folder, name, private=options.private)}")


def _parser() -> CommandParser:
    parser = CommandParser("export", "Write a run's adapter as a PEFT folder with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--to",
        required=True,
        metavar="DIR|hf://user/name",
        help="folder to write, or repository on the Hugging Face Hub (the folder is then RUN/export/name)",
    )
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
    parser.add_argument("--private", action="store_true", help="make a new repository on the Hub private")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    return parser
