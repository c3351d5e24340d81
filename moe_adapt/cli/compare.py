"""``moe-adapt compare RUN RUN ...``: a table of runs, paired where seeds agree; ``--to`` writes a report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["compare"]


def compare(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``compare``.

    Raises:
        UserError: If a folder is no finished run, or the runs share no metric.
    """
    options = _parser().parse(argv)
    if len(options.runs) < 2:
        raise UserError("give at least two runs to compare.")

    from rich.console import Console
    from rich.table import Table

    from moe_adapt.evaluation.words import method_words, metric_words
    from moe_adapt.runs.comparison import compare_pairs, read_run
    from moe_adapt.runs.comparison_report import write_comparison

    found = [read_run(folder) for folder in options.runs]
    runs = [replace(run, name=method_words(run.name)) for run in found]
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    if not shared:
        raise UserError("the runs share no metric: compare runs of one kind.")
    metric = options.metric or next((name for name in PREFERRED if name in shared), shared[0])
    if metric not in shared:
        raise UserError(
            f"not every run has {metric!r}.{did_you_mean(metric, shared)} All have: {', '.join(shared)}."
        )
    heads = ["run", "method", "seed", *shared, "parameters", "seconds"]
    rows = [
        [
            str(run.folder),
            run.name,
            run.seed,
            *(run.metrics[name] for name in shared),
            run.parameters,
            run.seconds,
        ]
        for run in runs
    ]
    table = Table(*heads)
    for row in rows:
        table.add_row(
            *(
                "-" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell)
                for cell in row
            )
        )
    console = Console(highlight=False)
    console.print(table)
    pairs = compare_pairs(runs, metric, options.margin)
    sentences = []
    for pair in pairs:
        spread = "" if pair.interval is None else f" ± {pair.interval:.4f}"
        sentences.append(
            f"{metric_words(metric)}, {pair.first} minus {pair.second}: {pair.difference:+.4f}{spread} "
            f"({pair.seeds} shared seeds): {pair.verdict}"
        )
    if len({run.rows for run in runs}) > 1:
        sentences.append("the runs have different rows, and figures of different rows do not compare")
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)
    if options.to is not None:
        print(f"report: {write_comparison(options.to, runs, shared, metric, sentences, options.overwrite)}")


#: Metrics that pairs are compared by, if none is asked for.
PREFERRED = ("test/acc", "val/acc", "final_accuracy", "val/loss")


def _parser() -> CommandParser:
    parser = CommandParser("compare", "Put runs beside one another, paired where their seeds agree.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs of fit or stream")
    parser.add_argument(
        "--metric", help="metric of the pairs (default: test or held-out accuracy, else the first)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.01, help="difference that does not matter (default: 0.01)"
    )
    parser.add_argument("--to", type=Path, metavar="FILE.html", help="write a report, too")
    parser.add_argument("--overwrite", action="store_true", help="replace the report that is there")
    return parser
