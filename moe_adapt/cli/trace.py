"""``moe-adapt trace RUN --to DIR``: how a run routes its data; others compare (`trace_views`)."""

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.trace_views import compare, contrast, precisions, shift
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
    what = _purpose(options)
    if options.batches < 1:
        raise UserError(f"--batches must be at least 1, got {options.batches}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning|transformers")
        what(options)


def _purpose(options: "Namespace") -> Callable[["Namespace"], None]:
    """Return what is to be done, once the options say exactly one thing."""
    of_traces = {
        "compare": lambda options: compare(*options.compare),
        "contrast": lambda options: contrast(*options.contrast),
    }
    of_a_run = {"to": _record, "shift": shift, "dtype": precisions}
    given = [name for name in (*of_traces, *of_a_run) if getattr(options, name)]
    if len(given) != 1 or (given[0] in of_a_run) != (options.run is not None):
        raise UserError(
            "moe-adapt trace needs a RUN with one of --to DIR, --shift FILE and --dtype, or without a RUN "
            "--compare A B or --contrast A B."
        )
    return (of_traces | of_a_run)[given[0]]


def _parser() -> CommandParser:
    parser = CommandParser("trace", "Record how a run routes its data, or compare such records.")
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
    parser.add_argument(
        "--contrast", type=Path, nargs=2, metavar=("A", "B"), help="which experts A uses more than B"
    )
    parser.add_argument(
        "--shift", type=Path, metavar="FILE", help="what typos, capitals and more text do to these rows"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("fp32", "bf16", "int8", "nf4"),
        help="compare the routing over the base rounded to these precisions",
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
