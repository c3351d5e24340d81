"""Unlearn rows from a finished run: its adapter, trained to forget some rows and to keep others.

What came of it is measured on the same rows before and after, with the model in evaluation mode: loss and
accuracy of rows to forget and to retain, how many routing decisions on retained rows are the same, and
whether an attack by loss can still tell forgotten rows from unseen ones (`moe_adapt.evaluation.membership`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.data.tables import SourceOption, load_table
from moe_adapt.errors import UserError
from moe_adapt.evaluation.likelihood import token_log_likelihood
from moe_adapt.evaluation.membership import membership_auc
from moe_adapt.evaluation.trace.compare import compare_traces
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.files import free_for, new_folder
from moe_adapt.hub.export import export_model
from moe_adapt.runs.export import about_run
from moe_adapt.runs.rebuild import load_data, load_module, read_run_config
from moe_adapt.runs.unlearn_report import unlearning_page
from moe_adapt.training.datamodules import CausalLMData, TextClassificationData
from moe_adapt.training.datamodules.domains import DomainColumn
from moe_adapt.training.modules.base import AdaptedModule, Batch
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.training.procedures.unlearning import Unlearn
from moe_adapt.training.tracing import record_batches
from moe_adapt.tuner.tracing import TraceRecorder

__all__ = ["REPORT_FILE", "row_losses", "unlearn", "unlearn_run"]

REPORT_FILE = "unlearning.json"
#: Column that says which rows are to be forgotten, and what it says.
PART, FORGET, RETAIN = "unlearning", "forget", "retain"

Data = TextClassificationData | CausalLMData


def row_losses(module: AdaptedModule, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return the loss of each row, [B], and whether its class is right, bool [B]; None for a language model.

    Args:
        module: A classifier or a causal language model.
        batch: The batch.
    """
    if isinstance(module, Classifier):
        logits, labels = module(batch).float(), batch["labels"]
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(dim=-1) == labels
    likelihood, count = token_log_likelihood(module(batch), batch["labels"])
    return -likelihood / count.clamp(min=1), None


def unlearn_run(
    run: str | Path,
    to: str | Path,
    forget: SourceOption,
    retain: SourceOption,
    unseen: SourceOption | None = None,
    procedure: Unlearn | None = None,
    *,
    epochs: int = 1,
    lr: float | None = None,
    seed: int = 0,
    checkpoint: str = "best",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Unlearn rows from a run; write the adapter that is left, and what came of it.

    Args:
        run: Folder that ``moe-adapt fit`` wrote.
        to: Folder to write: an adapter as `export_run` writes it, with the report beside it.
        forget: Rows to forget, such as the run's own training rows of somebody.
        retain: Rows to keep what is known of.
        unseen: Rows like those to forget that the run was not trained on, for the attack; None for no attack.
        procedure: How to unlearn; None for `Unlearn` with its defaults.
        epochs: Passes over all rows.
        lr: Learning rate of the experts, which moves the others in proportion; None for that of the run.
        seed: Fixes the order of the rows.
        checkpoint: ``best``, ``last`` or the path of a checkpoint of the run.
        overwrite: Replace an earlier adapter in `to`.

    Raises:
        UserError: If the run is none of texts with an adapter, a source is not as it should be, or `to` is in
            use.
    """
    free_for(Path(to), "an unlearned adapter", ("adapter", REPORT_FILE, "report.html"), overwrite)
    module: Any = load_module(run, checkpoint)
    if not isinstance(module, AdaptedModule) or module.tuner is None:
        raise UserError(f"the run {run} trained no adapter, so there is nothing to unlearn.")
    if lr is not None:
        module.lr = lr
    parts = {FORGET: forget, RETAIN: retain} | ({} if unseen is None else {"unseen": unseen})
    data = {name: _data(run, module, source) for name, source in parts.items()}
    training = _data(run, module, _both(data[FORGET], forget, retain), train=True, seed=seed)
    report = unlearn(module, training, data, procedure or Unlearn(FORGET), epochs, seed)
    about = about_run(Path(run), module, read_run_config(Path(run)))
    changed = replace(about, manifest={**about.manifest, "unlearning": report})
    with new_folder(Path(to)) as work:
        export_model(cast(Any, module.model), work / "adapter", about=changed)
        text = json.dumps(report, indent=1, allow_nan=False)
        (work / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        page = unlearning_page(report, Path(run).name)
        (work / "report.html").write_text(page, encoding="utf-8")
    return report


def unlearn(
    module: AdaptedModule,
    training: Any,
    data: Mapping[str, Any],
    procedure: Unlearn,
    epochs: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a module to forget, and return what came of it, as JSON types.

    Args:
        module: The trained module; its adapter changes.
        training: Data module whose training rows have the domains ``forget`` and ``retain``.
        data: Data modules with the test rows ``forget``, ``retain`` and perhaps ``unseen``.
        procedure: How to unlearn.
        epochs: Passes over all rows.
        seed: Fixes what is drawn.
    """
    before = {name: _measure(module, part) for name, part in data.items()}
    routing = _trace(module, data[RETAIN])
    L.seed_everything(seed, verbose=False)
    module.procedure = procedure
    trainer = L.Trainer(
        max_epochs=epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, datamodule=training)
    module.eval()
    after = {name: _measure(module, part) for name, part in data.items()}
    report: dict[str, Any] = {"procedure": procedure.settings(), "epochs": epochs, "seed": seed}
    report["steps"] = trainer.global_step
    for name in data:
        report[name] = {"rows": len(before[name]["losses"])}
        for kind in ("loss", "accuracy"):
            if before[name][kind] is not None:
                report[name][kind] = {"before": before[name][kind], "after": after[name][kind]}
    sites = compare_traces(routing, _trace(module, data[RETAIN])).values()
    whole = [site.stability for site in sites]
    report["stability"] = {"inputs": procedure.stability(module), "model": sum(whole) / len(whole)}
    if "unseen" in data:
        report["membership"] = {
            when: membership_auc(found[FORGET]["losses"], found["unseen"]["losses"])
            for when, found in (("before", before), ("after", after))
        }
    return report


def _both(data: Data, forget: SourceOption, retain: SourceOption) -> list[dict[str, Any]]:
    """Return all rows, each with the column that says what is to become of it."""
    rows = []
    for name, source in ((FORGET, forget), (RETAIN, retain)):
        table = load_table(source, "train", getattr(data, "column_names", None))
        rows += [{**table[row], PART: name} for row in range(len(table))]
    return rows


def _data(
    run: str | Path, module: AdaptedModule, source: SourceOption, train: bool = False, seed: int = 0
) -> Data:
    """Return the run's data module over other rows."""
    data: Any = load_data(run)
    if not isinstance(data, TextClassificationData | CausalLMData):
        raise UserError(f"moe-adapt unlearn knows runs on texts, not on {type(data).__name__}.")
    data.sources = {"train": source if train else None, "validation": None, "test": None if train else source}
    data.validation_fraction, data.max_train_rows, data.seed = 0.0, None, seed
    data.domains = DomainColumn(PART if train else None)
    if isinstance(data, TextClassificationData):
        data.class_names = list(module.answering["class_names"])
    data.prepare_data()
    data.setup("fit" if train else "test")
    return data


@torch.no_grad()
def _measure(module: AdaptedModule, data: Any) -> dict[str, Any]:
    pairs = [row_losses(module.eval(), batch) for batch in data.test_dataloader()]
    losses = torch.cat([loss for loss, _ in pairs])
    right = [hits for _, hits in pairs if hits is not None]
    accuracy = float(torch.cat(right).float().mean()) if right else None
    return {"losses": losses, "loss": float(losses.mean()), "accuracy": accuracy}


def _trace(module: AdaptedModule, data: Any) -> RoutingTrace:
    assert module.tuner is not None
    recorder = TraceRecorder(module.tuner, keep_probs=False)
    record_batches(module, data.test_dataloader(), recorder, limit=50)
    return recorder.trace([], {})
