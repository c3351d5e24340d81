r"""What a merged adapter loses against the routed one, measured on data.

Both give a distribution over classes (a classifier, one row per sample) or over the vocabulary (a language
model, one row per real token), and the gap of a row is

$$\mathrm{KL}(p_{routed} \| p_{merged}).$$
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.data.prompts import IGNORED
from moe_adapt.errors import UserError
from moe_adapt.evaluation.likelihood import pick_choices, token_log_likelihood
from moe_adapt.hub.mixture import LowRank
from moe_adapt.tuner import RoutedLoraModel
from moe_adapt.tuner.model import adapted_layers

__all__ = ["Gap", "gap_within", "measure_gap", "substituted"]


@dataclass(frozen=True)
class Gap:
    """The difference between a merged and a routed adapter.

    Attributes:
        rows: Compared distributions: samples of a classifier, tokens of a language model.
        kl_mean: Mean KL divergence in nats.
        kl_max: Largest KL divergence.
        agreement: Share of rows where both have the same highest class.
        accuracy_routed: Accuracy of the routed adapter, where there are labels.
        accuracy_merged: Accuracy of the merged one.
    """

    rows: int
    kl_mean: float
    kl_max: float
    agreement: float
    accuracy_routed: float | None
    accuracy_merged: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"KL to the routed model {self.kl_mean:.2e} on average, {self.kl_max:.2e} at most; "
            f"the same answer in {self.agreement:.1%} of {self.rows} rows"
        )
        if self.accuracy_routed is None or self.accuracy_merged is None:
            return text
        return f"{text}; accuracy {self.accuracy_routed:.4f} routed, {self.accuracy_merged:.4f} merged"


class _Merged(nn.Module):
    """A frozen layer plus one LoRA, in the order of operations of PEFT's own layer."""

    def __init__(self, base: nn.Module, lora: LowRank, device: torch.device) -> None:
        super().__init__()
        self.base = base
        self.lora = replace(lora, a=lora.a.to(device), b=lora.b.to(device))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base(x, *args, **kwargs)
        return (result + self.lora(x.to(self.lora.a.dtype))).to(result.dtype)


@contextmanager
def substituted(tuner: RoutedLoraModel, sites: Mapping[str, LowRank]) -> Iterator[None]:
    """Put one LoRA in the place of every routed layer while the block runs.

    Args:
        tuner: The tuner.
        sites: The LoRA of each adapted layer.
    """
    model = tuner.model
    layers = [layer for layer in adapted_layers(model) if layer.site in sites]
    try:
        for layer in layers:
            device = next(layer.base_layer.parameters()).device
            model.set_submodule(layer.site, _Merged(layer.base_layer, sites[layer.site], device))
        yield
    finally:
        for layer in layers:
            model.set_submodule(layer.site, layer)


def measure_gap(
    tuner: RoutedLoraModel,
    sites: Mapping[str, LowRank],
    batches: Iterable[Mapping[str, Tensor]],
    logits_of: Callable[[Any], Tensor],
) -> Gap:
    """Compare the merged with the routed model, batch by batch, in evaluation mode.

    Args:
        tuner: The tuner.
        sites: The LoRA of each adapted layer.
        batches: Batches as the data modules give them; ``labels`` and ``answer`` are used if there.
        logits_of: Returns the logits of a batch, [B, C] or [B, S, V].

    Raises:
        UserError: If there is no batch.
    """
    return gap_within(lambda: substituted(tuner, sites), batches, logits_of)


def gap_within(
    merged_model: Callable[[], AbstractContextManager[None]],
    batches: Iterable[Mapping[str, Tensor]],
    logits_of: Callable[[Any], Tensor],
) -> Gap:
    """Compare logits inside a context with those outside it; see `measure_gap`.

    Args:
        merged_model: Opens the context in which the merged model answers.
        batches: See `measure_gap`.
        logits_of: See `measure_gap`.

    Raises:
        UserError: If there is no batch.
    """
    rows, total, largest, same = 0, 0.0, 0.0, 0
    hits: list[tuple[int, int, int]] = []
    for batch in batches:
        with torch.inference_mode():
            routed = logits_of(batch)
            with merged_model():
                merged = logits_of(batch)
            p, q = _rows(routed, batch).log_softmax(-1), _rows(merged, batch).log_softmax(-1)
            divergence = (p.exp() * (p - q)).sum(-1).clamp(min=0)
            hits += _hits(routed, merged, batch)
        rows += len(divergence)
        total += float(divergence.sum())
        largest = max(largest, float(divergence.max()))
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    if not rows:
        raise UserError("the gap cannot be measured: there is no row to measure it on.")
    labelled = sum(count for *_, count in hits)
    accuracy = [sum(hit[i] for hit in hits) / labelled if labelled else None for i in (0, 1)]
    return Gap(rows, total / rows, largest, same / rows, *accuracy)


def _rows(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the distributions to compare, [M, C]: every sample, or every token that is not padding."""
    if logits.ndim == 2:
        return logits.float()
    mask = batch.get("attention_mask")
    return (logits.flatten(0, 1) if mask is None else logits[mask.bool()]).float()


def _hits(routed: Tensor, merged: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[int, int, int]]:
    """Return the right answers of both and how many rows have a label; nothing without labels."""
    labels = batch.get("labels")
    if labels is None:
        return []
    if "answer" in batch:
        answer, row = batch["answer"], batch["choice_row"]
        chosen = [
            pick_choices(token_log_likelihood(logits, labels)[0], row, len(answer))
            for logits in (routed, merged)
        ]
        return [(*(int((choice == answer).sum()) for choice in chosen), len(answer))]  # type: ignore[list-item]
    if routed.ndim == 2:
        known, guesses = labels, [logits.argmax(-1) for logits in (routed, merged)]
    else:
        known, guesses = labels[:, 1:], [logits[:, :-1].argmax(-1) for logits in (routed, merged)]
    counted = known != IGNORED
    right = [int(((guess == known) & counted).sum()) for guess in guesses]
    return [(right[0], right[1], int(counted.sum()))]
