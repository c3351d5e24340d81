"""What ``moe-adapt trace`` prints instead of recording: comparison, contrast, shift, precisions."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moe_adapt.errors import UserError

__all__ = ["compare", "contrast", "precisions", "shift"]


def compare(before: Path, after: Path) -> None:
    """Print how two traces of the same rows differ."""
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
    lines = [[short_site(site), *(_figure(row[key]) for key in columns)] for site, row in rows.items()]
    mean = ["mean", *(_figure(mean_of(rows.values(), key)) for key in columns)]
    _print(f"{before} and {after}", ["layer", *columns.values()], lines, mean)


def contrast(first: Path, second: Path) -> None:
    """Print which experts one trace uses more than another, layer by layer; the texts may differ."""
    from moe_adapt.evaluation.plots.trace import short_site
    from moe_adapt.evaluation.trace.contrast import expert_contrast
    from moe_adapt.evaluation.trace.file import load_trace

    traces = load_trace(first), load_trace(second)
    lines = []
    for site, values in expert_contrast(*traces).items():
        origins = traces[0].sites[site].origins
        names = [str(n) for n in range(len(values))] if origins is None else ["+".join(o) for o in origins]
        order = values.sort(descending=True).indices.tolist()
        most, least = (f"{names[e]} ({float(values[e]):+.2f})" for e in (order[0], order[-1]))
        lines.append([short_site(site), most, least, f"{float(values.abs().mean()):.3f}"])
    heads = ["layer", f"more in {first.name}", f"more in {second.name}", "mean size"]
    _print(f"log-ratio of the use of experts: {first} over {second}", heads, lines)


def shift(options: Namespace) -> None:
    """Print what typos, capitals and an appended sentence do to the routing and answers of a classifier."""
    from moe_adapt.serving.classify import Classifying
    from moe_adapt.serving.opening import open_model
    from moe_adapt.serving.robustness import text_shifts
    from moe_adapt.serving.rows import read_rows

    model = open_model(options.run, None, options.checkpoint)
    if not isinstance(model, Classifying):
        raise UserError(f"{options.run} is a language model; --shift is for classifiers of texts.")
    rows = read_rows(str(options.shift), model.columns[0])
    few = [row for row, _ in zip(rows, range(32 * options.batches), strict=False)]
    lines = [
        [name, f"{found.shift:.4f}", f"{found.same:.3f}", _figure(found.accuracy)]
        for name, found in text_shifts(model, few).items()
    ]
    heads = ["change", "shift (nats)", "same answer", "accuracy"]
    _print(f"{options.run} on {len(few):,} rows of {options.shift}", heads, lines)


def precisions(options: Namespace) -> None:
    """Print how far routing and answers agree with those over the base rounded to other precisions."""
    import itertools

    from moe_adapt.runs.rebuild import load_data, load_module
    from moe_adapt.training.precision import compare_precisions
    from moe_adapt.training.tracing import split_batches

    module = load_module(options.run, options.checkpoint)
    loader = split_batches(load_data(options.run), options.data)
    batches = list(itertools.islice(loader, options.batches))
    found = compare_precisions(module, batches, options.dtype)  # type: ignore[arg-type]
    heads: Mapping[str, str] = {
        "first": "first expert",
        "same_set": "same set",
        "routing_js": "JS",
        "answers": "same answer",
        "answer_kl": "KL of answers",
    }
    lines = [[name, *(f"{own.row()[key]:.4f}" for key in heads)] for name, own in found.items()]
    _print(f"{options.run} over a rounded base", ["base", *heads.values()], lines)


def _print(
    title: str, heads: Sequence[str], lines: Iterable[Sequence[str]], last: Sequence[str] | None = None
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    if last is not None:
        table.add_section()
        table.add_row(*last)
    Console().print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
