"""Trace a run: its module over batches of its data; trace, metrics, pictures and report as files."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device

from moe_adapt.errors import UserError
from moe_adapt.evaluation import plots
from moe_adapt.evaluation.plots._matplotlib import pyplot_figure
from moe_adapt.evaluation.trace.file import TRACE_FILE, save_trace
from moe_adapt.evaluation.trace.metrics import trace_metrics
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.evaluation.trace.report import html_report
from moe_adapt.files import free_for, new_folder
from moe_adapt.training.modules.base import AdaptedModule
from moe_adapt.tuner.tracing import TraceRecorder, router_geometry

__all__ = ["Split", "check_target", "record_batches", "split_batches", "trace_run", "write_trace"]

#: Which rows of the data are traced.
Split = Literal["train", "validation", "test"]

#: What `write_trace` may write.
FILES = (
    TRACE_FILE,
    "metrics.json",
    "load.png",
    "experts_per_token.png",
    "groups.png",
    "sample.png",
    "report.html",
)

Advance = Callable[[], None]


def split_batches(data: L.LightningDataModule, split: Split) -> Any:
    """Return the loader of a split; training rows come in their shuffled order.

    Args:
        data: The data module.
        split: Which rows.

    Raises:
        UserError: If the split has no rows.
    """
    stage = {"train": "fit", "validation": "validate", "test": "test"}[split]
    data.prepare_data()
    data.setup(stage)
    if split == "train":
        return data.train_dataloader()
    return data.val_dataloader() if split == "validation" else data.test_dataloader()


def record_batches(
    module: L.LightningModule,
    batches: Any,
    recorder: TraceRecorder,
    limit: int,
    advance: Advance = lambda: None,
) -> None:
    """Run batches through a module in evaluation mode and record them.

    The samples' groups are their domains (`domain_column` of the data), or else classification labels.

    Args:
        module: The module.
        batches: Batches as the data modules of this package give them.
        recorder: Gets the decisions.
        limit: The most batches to run.
        advance: Called after each batch.

    Raises:
        UserError: If the module is not of this package's kind, or a batch has no inputs that are known.
    """
    if not isinstance(module, AdaptedModule):
        raise UserError(f"a trace needs a module built on AdaptedModule, not {type(module).__name__}.")
    module.eval()
    for batch in itertools.islice(batches, limit):
        name = next((name for name in ("input_ids", "pixel_values") if name in batch), None)
        if name is None:
            raise UserError(f"a batch has {', '.join(batch)}, but neither input_ids nor pixel_values.")
        labels = batch.get("domain_ids", batch.get("labels"))
        groups = labels if labels is not None and labels.ndim == 1 else None
        moved = move_data_to_device(batch, module.device)
        with recorder.forward(batch[name], batch.get("attention_mask"), groups):
            module.task_loss(moved)
        advance()


def check_target(folder: Path, overwrite: bool) -> None:
    """Make sure that a trace may be written.

    Args:
        folder: The folder to write.
        overwrite: Whether an earlier trace in it may be replaced.

    Raises:
        UserError: If the folder is in use, or matplotlib is not installed.
    """
    pyplot_figure(1.0, 1.0, [1.0])
    free_for(folder, "a trace", FILES, overwrite, alone=True)


def write_trace(
    trace: RoutingTrace, folder: Path, title: str, geometry: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write trace, metrics, pictures and report, all of them or nothing, and return the metrics.

    Args:
        trace: The trace.
        folder: The folder, free or an earlier trace (see `check_target`).
        title: Heading of the report.
        geometry: What `moe_adapt.tuner.tracing.router_geometry` returned; it joins the sites' metrics.

    Raises:
        UserError: If matplotlib is not installed.
    """
    metrics = trace_metrics(trace)
    for site, values in (geometry or {}).items():
        if site in metrics["sites"]:
            metrics["sites"][site] |= values
    with new_folder(folder) as work:
        save_trace(trace, work)
        text = json.dumps(metrics, indent=1, allow_nan=False)
        (work / "metrics.json").write_text(text + "\n", encoding="utf-8")
        report = html_report(metrics, _draw(trace, metrics, work), title)
        (work / "report.html").write_text(report, encoding="utf-8")
    return metrics


def _draw(trace: RoutingTrace, metrics: dict[str, Any], folder: Path) -> dict[str, Path]:
    pictures = {
        "Load of the experts": folder / "load.png",
        "Experts per token": folder / "experts_per_token.png",
        "One sample": folder / "sample.png",
    }
    plots.draw_load(metrics, pictures["Load of the experts"])
    plots.draw_experts_per_token(metrics, pictures["Experts per token"])
    plots.draw_sample(trace, pictures["One sample"])
    if trace.groups is not None:
        pictures["Groups and experts"] = folder / "groups.png"
        plots.draw_groups(metrics, pictures["Groups and experts"])
    return pictures


def trace_run(
    module: L.LightningModule,
    data: L.LightningDataModule,
    split: Split,
    limit: int,
    meta: dict[str, Any],
    advance: Advance = lambda: None,
    sites: str | None = None,
    keep_token_ids: bool = False,
    keep_probs: bool = True,
) -> tuple[RoutingTrace, dict[str, Any]]:
    """Record a module over a split of its data; return the trace and the geometry of the routers.

    Args:
        module: The module, with its tuner.
        data: Its data module.
        split: Which rows.
        limit: The most batches.
        meta: Where the trace comes from, as JSON types.
        advance: Called after each batch.
        sites: See `moe_adapt.tuner.tracing.TraceRecorder`.
        keep_token_ids: See there.
        keep_probs: See there.

    Raises:
        UserError: If the module has no tuner, or the data no rows of that split.
    """
    tuner: Any = getattr(module, "tuner", None)
    if tuner is None:
        raise UserError("the run trained no adapter, so there is no routing to trace.")
    recorder = TraceRecorder(tuner, sites, keep_probs, keep_token_ids)
    record_batches(module, split_batches(data, split), recorder, limit, advance)
    domains = getattr(data, "domains", None)
    names = list(domains.names) if domains is not None and domains.column else []
    names = names or [str(name) for name in getattr(data, "class_names", None) or []]
    with torch.inference_mode():
        geometry = router_geometry(tuner)
    return recorder.trace(names, meta), geometry
