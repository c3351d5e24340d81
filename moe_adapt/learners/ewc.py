r"""Elastic weight consolidation: a quadratic pull towards earlier weights, as strong as they mattered.

After each task the diagonal of the Fisher information is estimated at the weights reached, and later tasks
pay

``lambda / 2 * sum_i F_i (theta_i - theta*_i)^2``.

The paper keeps one pair (F, theta*) per task. Ours is the running form (Schwarz et al.): one anchor, the
latest weights, and ``F <- decay * F + F_task``, so that memory does not grow with tasks. The Fisher
information is that of single samples (squares of a batch's mean gradient would be another quantity), with
labels drawn from the model. New rows of the head have no importance.

Reference: Kirkpatrick et al., 1612.00796; Schwarz et al., 1805.06370.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, TaskRun
from moe_adapt.learners.fine_tuning import FineTuning
from moe_adapt.learners.growth import TensorStore, grow_rows
from moe_adapt.streams import Batch, Task

__all__ = ["Ewc"]


@LEARNERS.register("ewc")
class Ewc(FineTuning):
    """`FineTuning` with elastic weight consolidation.

    Args:
        backbone: The encoder.
        strength: Weight of the pull, lambda. Higher: less forgetting, slower learning of new tasks.
        decay: What is left of old importances when a task's are added; 1 sums them all. Higher: older tasks
            count for more.
        fisher_samples: Samples of a task from which its importances are estimated.
        fisher_labels: Labels of the gradients: drawn from the ``model`` (the Fisher information), or those
            of the
            ``data`` (the empirical one).
        settings: Arguments of `FineTuning`.

    Raises:
        UserError: If a number is outside its range.
    """

    reference = (
        "EWC, Kirkpatrick et al. 2016, arXiv 1612.00796; running form, Schwarz et al. 2018, arXiv 1805.06370"
    )

    def __init__(
        self,
        backbone: Encoder,
        strength: float = 100.0,
        decay: float = 1.0,
        fisher_samples: int = 200,
        fisher_labels: Literal["model", "data"] = "model",
        **settings: Any,
    ) -> None:
        super().__init__(backbone, **settings)
        if strength < 0 or not 0 <= decay <= 1 or fisher_samples < 1:
            raise UserError(
                "strength must not be negative, decay in [0, 1] and fisher_samples positive, got "
                f"{strength}, {decay} and {fisher_samples}."
            )
        self.strength, self.decay = strength, decay
        self.fisher_samples, self.fisher_labels = fisher_samples, fisher_labels
        self.importance = TensorStore()
        self.anchor = TensorStore()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and the pull."""
        found = super().losses(batch)
        return found | {"ewc": self.pull()} if len(self.importance) else found

    def pull(self) -> Tensor:
        """Return ``lambda / 2 * sum F (theta - theta*)^2``, a scalar."""
        total = torch.zeros((), device=self.device)
        for name, parameter in self.named_parameters():
            if name in self.importance:
                weight, anchor = self.importance[name], self.anchor[name]
                old = parameter[: len(anchor)]  # rows for new classes have no anchor
                total = total + (weight * (old - anchor) ** 2).sum()
        return 0.5 * self.strength * total

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Add the importances of the task and move the anchor to the weights reached."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        fisher = self._fisher(task, run, trained)
        for name, parameter in trained.items():
            if name in self.importance:
                fisher[name] += self.decay * grow_rows(self.importance[name], len(parameter))
            self.importance[name] = fisher[name]
            self.anchor[name] = parameter.detach().clone()

    def _fisher(self, task: Task, run: TaskRun, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chosen = torch.randperm(len(task.train))[: self.fisher_samples].sort().values
        total = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
        with torch.enable_grad():
            for batch in run.batches(task.train.subset(chosen.numpy()), batch_size=1):
                logits = self.scores(batch)
                labels = batch["labels"]
                if self.fisher_labels == "model":
                    labels = torch.multinomial(logits.detach().softmax(dim=1), 1)[:, 0]
                loss = F.cross_entropy(logits, labels)
                gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
                for name, gradient in zip(trained, gradients, strict=True):
                    if gradient is not None:
                        total[name] += gradient**2
        return {name: value / len(chosen) for name, value in total.items()}
