r"""Learning without forgetting: the model before the task teaches the one that learns it.

The loss is cross-entropy on the task plus a distillation term on the task's own inputs,

``lambda * tau^2 * KL( softmax(z_old / tau) || softmax(z[:, :C_old] / tau) )``,

over the classes seen before. As in PILOT the cross-entropy is over the classes of the task by default, which
leaves the old rows of the head to the teacher. The paper warms the new rows up first; we do not.

Reference: Li and Hoiem, 1606.09282; LAMDA-CL/LAMDA-PILOT.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS
from moe_adapt.learners.fine_tuning import FineTuning
from moe_adapt.streams import Batch, Task

__all__ = ["LwF"]


@LEARNERS.register("lwf")
class LwF(FineTuning):
    """`FineTuning` with distillation from the model before the task.

    Args:
        backbone: The encoder.
        strength: Weight of the distillation, lambda. Higher: less forgetting, slower learning of new tasks.
        temperature: Softens both distributions, tau. Higher: small probabilities of the old model count for
            more.
        loss_over: Classes that compete in the cross-entropy; see `FineTuning`.
        settings: Arguments of `FineTuning`.

    Raises:
        UserError: If the temperature is not positive.
    """

    reference = "LwF, Li and Hoiem 2016, arXiv 1606.09282"

    def __init__(
        self,
        backbone: Encoder,
        strength: float = 3.0,
        temperature: float = 2.0,
        loss_over: Literal["seen", "task"] = "task",
        **settings: Any,
    ) -> None:
        super().__init__(backbone, loss_over=loss_over, **settings)
        if temperature <= 0 or strength < 0:
            raise UserError(
                f"temperature must be positive and strength not negative, got {temperature} and {strength}."
            )
        self.strength, self.temperature = strength, temperature
        self._teacher: dict[str, Tensor] = {}
        self._old_classes = 0

    def begin_task(self, task: Task) -> None:
        """Keep the weights as they are, then grow."""
        self._old_classes = self.num_seen
        super().begin_task(task)
        self._teacher = {n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and distillation."""
        old = self._old_classes
        if old == 0:
            return super().losses(batch)
        target = self._teacher_scores(batch)[:, :old]
        logits = self.scores(batch)
        tau = self.temperature
        student, teacher = (z.div(tau).log_softmax(dim=1) for z in (logits[:, :old], target))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return {
            "cross_entropy": self.cross_entropy(logits, batch["labels"]),
            "distillation": self.strength * tau**2 * divergence,
        }

    @torch.no_grad()
    def _teacher_scores(self, batch: Batch) -> Tensor:
        self.eval()
        scores = functional_call(self, self._teacher, (batch,))
        self.train()
        return scores
