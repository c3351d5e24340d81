"""Sequential fine-tuning, the lower bound, and joint training, the upper one.

Sequential fine-tuning trains on each task in turn and does nothing against forgetting. What it trains is a
choice: the head alone, an adapter and the head, or everything. Joint training gets the samples of all tasks
at once. A joint head over frozen features is no upper bound for a method that adapts features; the honest
one has the same adapter, trained jointly.
"""

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, Learner
from moe_adapt.learners.heads.trainable import GrowingLinear
from moe_adapt.streams import Batch, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["FineTuning", "Joint", "Tunes"]

#: What is trained: the ``head`` alone, ``adapter`` and head, or everything (``full``).
Tunes = Literal["head", "adapter", "full"]


@LEARNERS.register("fine_tuning")
class FineTuning(Learner):
    """Cross-entropy on one task after the other, with a linear head that grows.

    Args:
        backbone: The encoder.
        tunes: What is trained; None for ``adapter`` if there is a tuner, else ``head``.
        tuner: The adapter, for ``adapter``.
        loss_over: Classes that compete in the loss: all ``seen`` so far, or those of the ``task`` at hand,
            which leaves the rows of earlier classes alone.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If `tunes` and `tuner` contradict each other.
    """

    reference = "no paper: the lower bound"

    distributable = True

    def __init__(
        self,
        backbone: Encoder,
        tunes: Tunes | None = None,
        tuner: RoutedLoraConfig | None = None,
        loss_over: Literal["seen", "task"] = "seen",
        **settings: Any,
    ) -> None:
        super().__init__(backbone=backbone, **settings)
        if tunes is None:
            tunes = "head" if tuner is None else "adapter"
        if (tuner is not None) != (tunes == "adapter"):
            raise UserError(
                f"tunes={tunes!r} goes {'without' if tuner else 'with'} a tuner; change one of them."
            )
        self.tunes, self.tuner, self.loss_over = tunes, tuner, loss_over
        if tuner is not None:
            backbone.adapt(tuner)
        elif tunes == "full":
            backbone.requires_grad_(True)
        self.head = GrowingLinear(backbone.width)

    def grow(self, record: TaskRecord) -> None:
        """Add rows for new classes to the head."""
        self.head.grow(record.num_seen)

    def scores(self, batch: Batch) -> Tensor:
        """Return logits [B, C_seen]."""
        return self.head(self.encode(batch))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy over the competing classes."""
        return {"cross_entropy": self.cross_entropy(self.scores(batch), batch["labels"])}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits [B, C_seen] over the classes that compete, a scalar."""
        if self.loss_over == "task":
            others = logits.new_ones(logits.shape[1], dtype=bool)  # type: ignore[call-overload]
            others[list(self.history[-1].classes)] = False
            logits = logits.masked_fill(others, float("-inf"))
        return F.cross_entropy(logits, labels)


@LEARNERS.register("joint")
class Joint(FineTuning):
    """`FineTuning` on the samples of all tasks at once, tested once: the upper bound.

    Args:
        backbone: The encoder.
        settings: Arguments of `FineTuning`.
    """

    reference = "no paper: the upper bound"

    trains_on = "all"

    def __init__(self, backbone: Encoder, **settings: Any) -> None:
        super().__init__(backbone, **settings)
