"""What small changes of the texts do to a classifier: to its routing, and to its answers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.perturbations import PERTURBATIONS
from moe_adapt.evaluation.trace.contrast import routing_shift
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.serving.classify import Classifying
from moe_adapt.tuner import RoutedLoraModel
from moe_adapt.tuner.tracing import TraceRecorder

__all__ = ["Shift", "text_shifts"]


class Shift(NamedTuple):
    """What one change does.

    Attributes:
        shift: Divergence of the routing of each sample before and after, in nats, mean over layers.
        same: Share of rows with the same answer.
        accuracy: Share of labelled rows that are answered right afterwards; None without labels.
    """

    shift: float
    same: float
    accuracy: float | None


def text_shifts(
    model: Classifying, rows: Sequence[Mapping[str, Any]], seed: int = 0, batch_size: int = 32
) -> dict[str, Shift]:
    """Return what each change of `moe_adapt.evaluation.perturbations` does; ``none`` is no change.

    Args:
        model: The classifier of texts.
        rows: Rows with its text columns, and labels if there are any; all text columns change.
        seed: Of the typos.
        batch_size: Rows per forward.

    Raises:
        UserError: If the model classifies images or has no routed adapter, or there are no rows.
    """
    if model.images or not isinstance(getattr(model.model, "base_model", None), RoutedLoraModel):
        raise UserError("changes of texts are measured on classifiers of texts with a routed adapter.")
    if not rows:
        raise UserError("there are no rows to change.")
    clean = [model.inputs_of(row, number) for number, row in enumerate(rows)]
    labels = [row.get(model.label_column) for row in rows]
    changes = {"none": lambda text, seed: text, **PERTURBATIONS}
    reference, before = _observed(model, clean, batch_size)
    found = {}
    for name, change in changes.items():
        changed = [tuple(change(text, seed) for text in texts) for texts in clean]
        trace, answers = _observed(model, changed, batch_size)
        shifts = routing_shift(reference, trace).values()
        pairs = [(str(label), said) for label, said in zip(labels, answers, strict=True) if label is not None]
        found[name] = Shift(
            sum(shifts) / len(shifts),
            sum(one == two for one, two in zip(before, answers, strict=True)) / len(rows),
            sum(label == said for label, said in pairs) / len(pairs) if pairs else None,
        )
    return found


def _observed(
    model: Classifying, inputs: Sequence[tuple[str, ...]], batch_size: int
) -> tuple[RoutingTrace, list[str]]:
    """Return the trace and the predicted classes of texts."""
    recorder = TraceRecorder(model.model.base_model, keep_probs=False)
    answers: list[str] = []
    for start in range(0, len(inputs), batch_size):
        some = inputs[start : start + batch_size]
        numbers = torch.arange(start, start + len(some))[:, None]
        with recorder.forward(numbers):
            answers += [answer.prediction for answer in model(some)]
    return recorder.trace(), answers
