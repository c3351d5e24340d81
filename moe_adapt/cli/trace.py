"""``moe-adapt trace RUN --to DIR``: how a run routes its data; ``--compare A B``: how two traces differ."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["trace"]


def trace(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``trace``.

    Raises:
        UserError: For a mistake in the arguments, a folder that is no run, or a target that is in use.
    """
    options = _parser().parse(argv)
    if options.compare:
        if options.run or options.to:
            raise UserError("give either a RUN with --to DIR, or --compare A B.")
        _compare(*options.compare)
        return
    if options.run is None or options.to is None:
        raise UserError("moe-adapt trace needs a RUN and --to DIR, or --compare A B.")
    if options.batches < 1:
        raise UserError(f"--batches must be at least 1, got {options.batches}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning|transformers")
        _record(options)


def _parser() -> CommandParser:
    parser = CommandParser("trace", "Record how a run routes its data, or compare two such records.")
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="folder of the run")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--data", choices=("train", "validation", "test"), default="test", help="which rows (default: test)"
    )
    parser.add_argument("--batches", type=int, default=50, metavar="N", help="most batches (default: 50)")
    parser.add_argument("--sites", metavar="REGEX", help="only the layers whose path matches")
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="best (the default), last, or the path of a checkpoint of the run",
    )
    parser.add_argument("--device", help="where to run, such as cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--no-probs", action="store_true", help="leave the probabilities out: a smaller file")
    parser.add_argument(
        "--token-ids", action="store_true", help="keep token ids: the file then holds the text"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the trace that is in the folder")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two traces of the same rows"
    )
    return parser


def _record(options: "Namespace") -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from moe_adapt.runs.rebuild import load_data, load_module  # after the arguments: it takes seconds
    from moe_adapt.training.tracing import check_target, split_batches, trace_run, write_trace

    check_target(options.to, options.overwrite)
    data = load_data(options.run)
    try:
        batches = min(options.batches, len(split_batches(data, options.data)))
    except UserError as mistake:
        raise UserError(f"{mistake} Or trace other rows of the run with --data.") from mistake
    module = load_module(options.run, options.checkpoint).to(_device(options.device))
    meta = {"run": options.run.name, "checkpoint": Path(options.checkpoint).name, "data": options.data}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("batches", total=batches)
        recorded, geometry = trace_run(
            module,
            data,
            options.data,
            options.batches,
            meta,
            advance=lambda: progress.advance(task),
            sites=options.sites,
            keep_token_ids=options.token_ids,
            keep_probs=not options.no_probs,
        )
        progress.add_task("metrics and pictures", total=None)
        metrics = write_trace(recorded, options.to, f"Routing of {options.run.name}", geometry)
    mean = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mean"].items() if value is not None)
    print(f"{len(metrics['sites'])} layers, {metrics['samples']} samples, {metrics['tokens']} tokens: {mean}")
    print(f"report: {options.to / 'report.html'}")


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"--device is cpu, cuda, cuda:N or mps, not {name!r}.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: there is no CUDA device here; use cpu.")
    return name


def _compare(before: Path, after: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from moe_adapt.evaluation.plots.trace import short_site
    from moe_adapt.evaluation.trace.compare import compare_traces
    from moe_adapt.evaluation.trace.file import load_trace
    from moe_adapt.evaluation.trace.metrics import mean_of

    found = compare_traces(load_trace(before), load_trace(after))
    columns = {
        "top1": "first",
        "overlap": "overlap",
        "chance": "chance",
        "stability": "same set",
        "js": "JS",
        "load_js": "load JS",
    }
    if any(comparison.leak for comparison in found.values()):
        columns["leak"] = "leak"
    rows = {site: vars(comparison) for site, comparison in found.items()}
    table = Table(title=f"{before} and {after}", title_justify="left")
    table.add_column("layer", overflow="fold")
    for title in columns.values():
        table.add_column(title, justify="right")
    for site, row in rows.items():
        table.add_row(short_site(site), *(_figure(row[key]) for key in columns))
    table.add_section()
    table.add_row("mean", *(_figure(mean_of(rows.values(), key)) for key in columns))
    Console().print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
