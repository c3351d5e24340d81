"""``moe-adapt drift``: compare learners on drift streams, those of a recipe or a file of one's own."""

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
    parser.add_argument("--config", "-c", metavar="RECIPE", help="a recipe, such as drift/demo")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="your own rows: .csv .tsv .jsonl .parquet .arff"
    )
    parser.add_argument("--label", metavar="COLUMN", help="column of --data to predict (the last one)")
    parser.add_argument(
        "--nominal", nargs="+", metavar="COLUMN", help="columns of --data whose numbers are names"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (runs/<recipe>-<time>)")
    parser.add_argument("--streams", nargs="+", metavar="NAME", help="only these streams of the recipe")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods of the recipe")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds of the recipe")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write the report of what is there"
    )
    options = parser.parse(argv)
    if (options.config is None) == (options.data is None):
        raise UserError(
            "give a recipe (--config drift/demo) or a file of your own (--data rows.csv --label COLUMN)."
        )
    if options.data is None and (options.label or options.nominal):
        raise UserError("--label and --nominal belong to --data; a recipe names them itself.")
    name = (options.config and resolve_config(options.config).stem) or options.data.name.partition(".")[0]
    # a file of one's own has one folder, so that the same command goes on; recipes are many and take --out
    default = f"{name}-{datetime.now():%Y%m%d-%H%M%S}" if options.data is None else f"drift-{name}"
    out = options.out or Path("runs") / default
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a folder.")

    from moe_adapt.drift.comparison.compare import compare  # after the arguments: it imports River
    from moe_adapt.drift.comparison.own import own_recipe

    if options.data is None:
        path = resolve_config(options.config)
    else:
        path = own_recipe(options.data, options.label, tuple(options.nominal or ()), out)

    streams, methods = (tuple(names) if names else None for names in (options.streams, options.methods))
    seeds = tuple(options.seeds) if options.seeds else None
    compare(path, out, streams, methods, seeds, report_only=options.report_only)
