"""``moe-adapt drift --config RECIPE``: compare learners on drift streams, prequentially."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError
from moe_adapt.runs.config_names import resolve_config

__all__ = ["drift"]


def drift(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``drift``.

    Raises:
        UserError: For a mistake in the arguments or the recipe, or a folder that holds another comparison.
    """
    parser = CommandParser(
        "drift",
        "Compare learners on drift streams, test-then-train: every row is predicted before its label is "
        "shown. A comparison that was stopped goes on when the same command is run again.",
    )
    parser.add_argument(
        "--config", "-c", required=True, metavar="RECIPE", help="a recipe, such as drift/demo"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (runs/<recipe>-<time>)")
    parser.add_argument("--streams", nargs="+", metavar="NAME", help="only these streams of the recipe")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods of the recipe")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds of the recipe")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write the report of what is there"
    )
    options = parser.parse(argv)
    path = resolve_config(options.config)
    out = options.out or Path("runs") / f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a folder.")

    from moe_adapt.drift.comparison.compare import compare  # after the arguments: it imports River

    streams, methods = (tuple(names) if names else None for names in (options.streams, options.methods))
    seeds = tuple(options.seeds) if options.seeds else None
    compare(path, out, streams, methods, seeds, report_only=options.report_only)
