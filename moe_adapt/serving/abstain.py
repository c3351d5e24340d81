"""A classifier that says when it does not know: what it needs of known rows, and what it adds to answers.

`Abstaining` wraps an opened classifier. Features are what its head sees; the disagreement is that of the
experts when each of them answers alone, at every layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.evaluation.abstention import Abstention
from moe_adapt.evaluation.novelty import expert_disagreement
from moe_adapt.serving.classify import Answer, Classifying
from moe_adapt.tuner import RoutedLoraModel
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.peft_plugin import AuxiliaryTrainingWrapper

__all__ = ["Abstaining", "Doubtful"]

#: Most experts that answer alone.
MOST_EXPERTS = 8


@dataclass(frozen=True)
class Doubtful(Answer):
    """An answer, and how new its row is.

    Attributes:
        novelty: How rare the row would be among known ones, in [0, 1).
        abstained: Whether that is too rare for an answer.
    """

    novelty: float = 0.0
    abstained: bool = False

    def row(self, top: bool) -> dict[str, Any]:
        """Return it as JSON types; no prediction where there is no answer."""
        found = super().row(top) | {"novelty": round(self.novelty, 4), "abstained": self.abstained}
        return found | ({"prediction": None} if self.abstained else {})


@dataclass
class Abstaining:
    """A classifier that gives no answer where it does not know.

    Attributes:
        model: The classifier.
        known: What known rows are like; see `learn`.
        abstained: Rows without an answer so far.
    """

    model: Classifying
    known: Abstention | None = None
    abstained: int = field(default=0, init=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def learn(self, rows: Iterable[Sequence[tuple[str, ...]]], share: float) -> int:
        """Learn from batches of known rows, and return how many there were.

        Args:
            rows: What `Classifying.inputs_of` gives, batch by batch.
            share: Share of known rows that may lose their answer.

        Raises:
            UserError: If there are fewer than 20 rows.
        """
        features, classes, doubts = [], [], []
        for batch in rows:
            own, logits, doubt = self._signs(batch)
            features.append(own)
            classes.append(logits.argmax(dim=-1))
            doubts += [] if doubt is None else [doubt]
        if not features:
            raise UserError("to know what is known takes 20 rows or more, got none.")
        disagreements = torch.cat(doubts) if doubts else None
        self.known = Abstention.fit(torch.cat(features), torch.cat(classes), disagreements, share)
        return sum(map(len, features))

    def __call__(self, inputs: Sequence[Any], top: int = 1, **options: Any) -> list[Answer]:
        """Classify a batch; see `Classifying`."""
        assert self.known is not None, "learn() comes first"
        answers = self.model(inputs, top, **options)
        rows = [item if isinstance(item, tuple) else (item,) for item in inputs]
        features, _, doubt = self._signs(rows)
        novelty = self.known.novelty(features, doubt).tolist()
        marked: list[Answer] = [
            Doubtful(answer.prediction, answer.probability, answer.top, new, new > self.known.cut)
            for answer, new in zip(answers, novelty, strict=True)
        ]
        self.abstained += sum(new > self.known.cut for new in novelty)
        return marked

    def _signs(self, rows: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return features [B, d], logits [B, C], and the experts' disagreement [B] if there are several."""
        seen: list[Tensor] = []
        handle = _head(self.model.model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.inference_mode():
                logits = self.model.logits(rows, {}).float().cpu()
        finally:
            handle.remove()
        features = seen[0].float().cpu()
        features = features[:, 0] if features.ndim == 3 else features.flatten(1)
        experts = _experts(self.model.model)
        if len(experts) < 2:
            return features, logits, None
        alone = []
        with torch.inference_mode():
            for name in experts[:MOST_EXPERTS]:
                told: Mapping[str, Any] = {"adapter_ids": [name] * len(rows)}
                alone.append(self.model.logits(rows, told).float().softmax(dim=-1).cpu())
        return features, logits, expert_disagreement(torch.stack(alone, dim=1), "js")


def _head(model: Any) -> torch.nn.Module:
    """Return the module whose input are the features: the head that was trained whole."""
    heads = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    if not heads:
        raise UserError("the classifier has no head of its own beside its adapter, so there are no features.")
    return heads[-1]


def _experts(model: Any) -> list[str]:
    """Return the names of the experts that every layer has; none for an adapter that chooses by sample."""
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, RoutedLoraModel):
        return []
    adapter = tuner.active_adapters[0]
    layers = [layer for layer in adapted_layers(tuner.model) if adapter in layer.specs]
    names = layers[0].specs[adapter].names
    return [name for name in names if all(name in layer.specs[adapter].names for layer in layers)]
