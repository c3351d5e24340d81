r"""Experience replay and dark experience replay (DER++): old samples are trained on beside the new ones.

With a batch (x, y) of the task and batches (x', y', z') and (x'', y'') drawn from a reservoir:

* ER:    ``CE(f(x), y) + w CE(f(x'), y')``
* DER++: ``CE(f(x), y) + alpha |f(x') - z'|^2 + beta CE(f(x''), y'')``, z' being the logits when x' was
  stored.

Samples enter the reservoir in the first epoch over a task, when they are trained on, with their augmentation
and with the logits of that moment; later epochs offer nothing again, so the reservoir is a uniform sample of
the stream. The head grows, so z' is compared over the classes that it had. All samples of a step go through
the model in one forward.

Reference: ER, Chaudhry et al., 1902.10486; DER++, Buzzega et al., 2004.07211; aimagelab/mammoth.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS
from moe_adapt.learners.fine_tuning import FineTuning
from moe_adapt.learners.reservoir import ReservoirBuffer, join
from moe_adapt.streams import Batch

__all__ = ["DarkReplay", "ExperienceReplay"]


@LEARNERS.register("replay")
class ExperienceReplay(FineTuning):
    """`FineTuning` with a reservoir of old samples.

    Args:
        backbone: The encoder.
        capacity: Samples kept. Higher: less forgetting, more memory.
        replay_batch_size: Old samples per step; None for as many as new ones.
        replay_weight: Weight of their cross-entropy. Higher: old samples count for more.
        settings: Arguments of `FineTuning`.
    """

    reference = "ER, Chaudhry et al. 2019, arXiv 1902.10486"

    distributable = False  # each process would keep samples of its own

    def __init__(
        self,
        backbone: Encoder,
        capacity: int = 500,
        replay_batch_size: int | None = None,
        replay_weight: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, **settings)
        if replay_batch_size is not None and replay_batch_size < 1:
            raise UserError(f"replay_batch_size must be at least 1, got {replay_batch_size}.")
        self.capacity = capacity
        self.replay_batch_size = replay_batch_size
        self.replay_weight = replay_weight
        self.reservoir = ReservoirBuffer(capacity)

    @property
    def _draws(self) -> int:
        return self.replay_batch_size or self.batch_size

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropies of new and old samples; keep the new ones in the first epoch."""
        new = len(batch["labels"])
        if len(self.reservoir) == 0:
            found = super().losses(batch)
        else:
            old = self.reservoir.draw(self._draws)
            logits = self.scores(join(batch, old))
            replayed = F.cross_entropy(logits[new:], old["labels"])
            found = {
                "cross_entropy": self.cross_entropy(logits[:new], batch["labels"]),
                "replay": self.replay_weight * replayed,
            }
        if self.current_epoch == 0:
            self.reservoir.add(batch)
        return found

    def memory_bytes(self) -> dict[str, int]:
        """Return the bytes of parameters, statistics and stored samples."""
        found, stored = super().memory_bytes(), self.reservoir.nbytes()
        return {**found, "statistics": found["statistics"] - stored, "replay": stored}


@LEARNERS.register("dark_replay")
class DarkReplay(ExperienceReplay):
    """DER++: replay of samples with their labels and with the logits that they once had.

    Args:
        backbone: The encoder.
        alpha: Weight of the squared distance to the stored logits; with ``beta`` 0 this is DER. Higher:
            answers on old samples move less.
        beta: Weight of the cross-entropy of old samples. Higher: old labels count for more.
        settings: Arguments of `ExperienceReplay`; ``replay_weight`` is not used.
    """

    reference = "DER++, Buzzega et al. 2020, arXiv 2004.07211"

    def __init__(self, backbone: Encoder, alpha: float = 0.1, beta: float = 0.5, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.alpha, self.beta = alpha, beta

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy, distance to stored logits and cross-entropy of old samples."""
        new = len(batch["labels"])
        dark = plain = None
        joined: Batch = batch
        if len(self.reservoir) > 0:
            dark, plain = self.reservoir.draw(self._draws), self.reservoir.draw(self._draws)
            joined = join(batch, dark, plain)
        logits = self.scores(joined)
        found = {"cross_entropy": self.cross_entropy(logits[:new], batch["labels"])}
        if dark is not None and plain is not None:
            middle = new + len(dark["labels"])
            found["dark"] = self.alpha * stored_distance(logits[new:middle], dark["stored_logits"])
            found["replay"] = self.beta * F.cross_entropy(logits[middle:], plain["labels"])
        if self.current_epoch == 0:
            self.reservoir.add({**batch, "stored_logits": logits[:new].detach().float()})
        return found


def stored_distance(logits: Tensor, stored: Tensor) -> Tensor:
    """Return the mean squared distance over the classes that the stored logits had, a scalar.

    Args:
        logits: Logits [B, C_seen].
        stored: Logits when the samples were stored, [B, C <= C_seen]; nan for classes that came later.
    """
    known = ~torch.isnan(stored)
    difference = (logits[:, : stored.shape[1]] - stored.nan_to_num())[known]
    return (difference**2).mean()
