"""``moe-adapt export RUN --to DIR``: write a run's adapter or learner; ``--to hf://user/name`` pushes it."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError

__all__ = ["export"]

#: Options that concern adapters alone; None where they were not given.
OF_ADAPTERS = ("checkpoint", "calibration", "gap", "batches", "max_rank", "drop_sites")
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
    from moe_adapt.runs.stream_export import is_stream_run

    name = repository(options.to) if online else None
    folder = Path(options.to) if name is None else options.run / "export" / name.partition("/")[2]
    if (options.run / "compose.json").is_file():
        write = _export_composed
    else:
        write = _export_learner if is_stream_run(options.run) else _export_adapter
    print(write(options, folder, overwrite=options.overwrite or online))
    if name is not None:
        print(f"pushed: {push_folder(folder, name, private=options.private)}")


def _export_adapter(options: Namespace, folder: Path, overwrite: bool) -> Any:
    from moe_adapt.runs.export import export_run

    if options.form == "learner":
        raise UserError(f"{options.run} fine-tuned an adapter; the form `learner` is for runs over streams.")
    given = {name: getattr(options, name) for name in ("form", *OF_ADAPTERS)}
    given = {name: value for name, value in given.items() if value is not None}
    return export_run(options.run, folder, license=options.license, overwrite=overwrite, **given)


def _export_composed(options: Namespace, folder: Path, overwrite: bool) -> Any:
    from moe_adapt.hub.composition.split import split

    foreign = [name for name in (*OF_ADAPTERS, "license") if getattr(options, name) is not None]
    if options.form != "experts" or foreign:
        raise UserError(
            f"{options.run} is a composed adapter and can be published as it is; only --form experts is "
            "written, its experts as ordinary LoRAs."
        )
    return split(options.run, folder, overwrite=overwrite)


def _export_learner(options: Namespace, folder: Path, overwrite: bool) -> Any:
    from moe_adapt.runs.stream_export import export_stream_run

    foreign = [name for name in OF_ADAPTERS if getattr(options, name) is not None]
    if options.form not in (None, "learner") or foreign:
        raise UserError(
            f"{options.run} is a run over a stream, whose learner is exported as it is: leave out "
            f"{', '.join('--' + name for name in foreign or ['form'])} (its adapter alone, if it has one, "
            f"is in {options.run / 'adapter'})."
        )
    return export_stream_run(options.run, folder, license=options.license, overwrite=overwrite)


def _parser() -> CommandParser:
    parser = CommandParser(
        "export", "Write a run's adapter as a PEFT folder, or the learner of a stream, with a model card."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--to",
        required=True,
        metavar="DIR|hf://user/name",
        help="folder to write, or repository on the Hugging Face Hub (the folder is then RUN/export/name)",
    )
    parser.add_argument(
        "--form",
        choices=("adapter", "experts", "merged", "full", "learner"),
        help="adapter: experts and router, needs moe-adapt to load (the default); experts: an ordinary LoRA "
        "per expert; merged: one ordinary LoRA; full: base and merged LoRA as one model. These three need "
        "PEFT, transformers or timm alone and lose the router. learner: what a run over a stream learned, "
        "the default there",
    )
    parser.add_argument(
        "--checkpoint",
        help="best (the default), last, or the path of a checkpoint of the run",
    )
    parser.add_argument(
        "--calibration",
        choices=SPLITS,
        help="merged, full: rows over which gates are averaged (default: train)",
    )
    parser.add_argument(
        "--gap",
        choices=SPLITS,
        help="rows on which merged and full measure what is lost, and --drop_sites what is needed "
        "(default: validation)",
    )
    parser.add_argument(
        "--batches", type=int, metavar="N", help="merged, full: most batches of each (default: 32)"
    )
    parser.add_argument(
        "--max_rank", type=int, metavar="R", help="merged: cut layers of a larger rank to R (default: exact)"
    )
    parser.add_argument(
        "--drop_sites",
        type=float,
        metavar="SHARE",
        help="leave out this share of the adapted layers, least needed first, measured on the rows of --gap",
    )
    parser.add_argument("--license", metavar="ID", help="licence to name in the card, such as apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a new repository on the Hub private")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    return parser
