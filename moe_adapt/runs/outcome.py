"""What a finished fine-tuning run reached on its held-out rows, beside its baselines.

`examine` looks once more at the rows that were held out, with the checkpoint that will be used: right and
wrong by class, the rows it is most wrong about, and whether its routers tell the classes apart. Nothing else
of the run is computed again.
"""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.metrics import trace_metrics
from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.training.callbacks.head_start import BASELINES
from moe_adapt.training.checkpoint import read_checkpoint
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.training.tracing import record_batches
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.tracing import TraceRecorder

__all__ = ["Outcome", "examine", "outcome_of", "result_rows"]

#: Batches over which the routing is looked at.
TRACED = 8

#: Rows that a report shows.
WORST = 12


@dataclass
class Outcome:
    """What a run reached.

    Attributes:
        metric: The metric that chose the checkpoint, such as ``val/acc``.
        value: Its value; None if the run never validated.
        higher_is_better: Whether a larger value is better.
        baselines: Values of the baselines by their name in tables.
        checkpoint: The checkpoint that has that value.
        class_names: Names of the classes; empty without classes.
        confusion: Rows of class i that were taken for class j, [C][C].
        worst: The most wrong rows: ``text``, ``label``, ``prediction``, ``probability`` of the prediction.
        routing: Means over the layers, as `trace_metrics` has them.
        rows: Held-out rows.
    """

    metric: str
    value: float | None
    higher_is_better: bool
    checkpoint: Path
    baselines: dict[str, float] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)
    routing: dict[str, Any] = field(default_factory=dict)
    rows: int = 0

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the classes that are there or were said; None without a confusion."""
        scores = []
        for number, row in enumerate(self.confusion):
            said = sum(other[number] for other in self.confusion)
            if sum(row) + said:
                scores.append(2 * row[number] / (sum(row) + said))
        return sum(scores) / len(scores) if scores else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of an accuracy; None of another metric."""
        if self.metric != "val/acc" or not self.rows or self.value is None:
            return None
        share = (self.value * self.rows + 2) / (self.rows + 4)  # Agresti and Coull: not zero at 0 or 1
        return float((share * (1 - share) / (self.rows + 4)) ** 0.5)

    @property
    def unseen(self) -> list[str]:
        """Classes of which no row was held out."""
        names = self.class_names or [str(number) for number in range(len(self.confusion))]
        return [name for name, row in zip(names, self.confusion, strict=True) if not sum(row)]

    def record(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return {
            "metric": self.metric,
            "value": self.value,
            "rows": self.rows,
            "macro_f1": self.macro_f1,
            "checkpoint": self.checkpoint.name,
            "baselines": self.baselines,
        }


def outcome_of(folder: Path, module: Any, best: Any, last: Path) -> Outcome:
    """Return what is known without looking at rows again.

    Args:
        folder: The run's folder, with its manifest.
        module: The trained module.
        best: The callback that kept the best checkpoint; None if there was none.
        last: The last checkpoint, for a run that never validated.
    """
    metric, mode = getattr(module, "monitor", ("val/loss", "min"))
    value, checkpoint = None, last
    if best is not None and best.best_model_score is not None:
        metric, mode, value = best.monitor, best.mode, float(best.best_model_score)
        checkpoint = Path(best.best_model_path)
    start = _manifest(folder).get("head_start") or {}
    baselines = {BASELINES[name]: score for name, score in start.get(metric, {}).items()}
    return Outcome(metric, value, mode == "max", checkpoint, baselines, rows=start.get("held_out_rows", 0))


def examine(outcome: Outcome, module: Any, data: Any) -> None:
    """Look at the held-out rows with the checkpoint of the outcome; the module is afterwards as it was.

    Args:
        outcome: Gets confusion, worst rows and routing.
        module: The run's module.
        data: The run's data module, set up.
    """
    rows = getattr(data, "splits", {}).get("validation")
    if rows is None or not outcome.checkpoint.is_file():
        return
    outcome.rows = len(rows)
    before = {name: tensor.clone() for name, tensor in adapter_state(module).items()}
    module.load_state_dict(read_checkpoint(outcome.checkpoint)["state_dict"], strict=False)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            if isinstance(module, Classifier):
                _classify(outcome, module, data)
            if getattr(module, "tuner", None) is not None and _chooses(module):
                _route(outcome, module, data)
    finally:
        module.load_state_dict(before, strict=False)
        module.train(training)


def _classify(outcome: Outcome, module: Classifier, data: Any) -> None:
    found, labels = [], []
    for batch in data.val_dataloader():
        moved = move_data_to_device(batch, module.device)
        found.append(module.predict_step(moved, 0)["probabilities"].cpu())
        labels.append(batch["labels"])
    probabilities, truth = torch.cat(found), torch.cat(labels)
    predicted = probabilities.argmax(dim=1)
    count = module.num_classes
    outcome.class_names = [str(name) for name in getattr(data, "class_names", [])]
    table = torch.bincount(truth * count + predicted, minlength=count * count).view(count, count)
    outcome.confusion = table.tolist()
    if outcome.metric == "val/acc":
        outcome.value = float((predicted == truth).float().mean())
    of_truth = probabilities[torch.arange(len(truth)), truth]
    wrong = [row for row in of_truth.argsort().tolist() if predicted[row] != truth[row]]
    names = outcome.class_names
    for row in wrong[:WORST]:
        item = data.splits["validation"][row]
        text = " | ".join(item[0]) if isinstance(item, tuple) and isinstance(item[0], tuple) else f"row {row}"
        label, said = int(truth[row]), int(predicted[row])
        outcome.worst.append(
            {
                "text": text,
                "label": names[label] if names else label,
                "prediction": names[said] if names else said,
                "probability": round(float(probabilities[row, said]), 4),
            }
        )


def _chooses(module: Any) -> bool:
    """Return whether any layer has more than one expert."""
    layers = adapted_layers(module.model)
    return any(layer.bank(module.model.active_adapter).num_experts > 1 for layer in layers)


def _route(outcome: Outcome, module: Any, data: Any) -> None:
    recorder = TraceRecorder(module.tuner, None, True, False)
    try:
        record_batches(module, itertools.islice(data.val_dataloader(), TRACED), recorder, TRACED)
        domains = getattr(data, "domains", None)
        names = list(domains.names) if domains is not None and domains.column else outcome.class_names
        outcome.routing = trace_metrics(recorder.trace(names, {}))["mean"]
    except UserError:  # a module whose batches no recorder knows
        outcome.routing = {}


def result_rows(outcome: Outcome, name: str) -> list[tuple[str, float | None]]:
    """Return the table of results: the run and its baselines.

    Args:
        outcome: What the run reached.
        name: What the run is called.
    """
    return [(name, outcome.value), *outcome.baselines.items()]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
