"""A LoRA per task, and the task of a test sample guessed from the nearest prototype.

The prototype of a task is the mean vector of its training prompts under the pretrained model. At test time a
sample takes the LoRA of the prototype with the highest cosine: a task classifier in front of isolated
adapters, and the baseline that a routed method has to beat on streams of unlike tasks. Each sample is routed
by itself. (The released code of SAME does much the same thing with image and text prototypes, under the name
of a router.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.learners.base import LEARNERS, TaskRun
from moe_adapt.learners.growth import grow_rows
from moe_adapt.learners.instructions.base import InstructionLearner, select
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["PrototypeLoRA"]


@LEARNERS.register("prototype_lora")
class PrototypeLoRA(InstructionLearner):
    """One adapter per task, chosen by the nearest task prototype.

    Args:
        backbone: The model.
        tuner: The adapter of one task.
        settings: Arguments of `Learner`.
    """

    reference = "no paper: a baseline"

    prototypes: Tensor

    def __init__(self, backbone: InstructionModel, tuner: RoutedLoraConfig, **settings: Any) -> None:
        super().__init__(backbone, tuner, **settings)
        self.register_buffer("prototypes", torch.zeros(0, 0))

    def grow(self, record: TaskRecord) -> None:
        """Add the adapter of a task and make it the one that trains."""
        name = self._name(record.index)
        model: Any = self.answerer.model
        if name not in model.peft_config:
            model.add_adapter(name, self.tuner)
        model.set_adapter(name)

    @staticmethod
    def _name(index: int) -> str:
        return "default" if index == 0 else f"task_{index}"

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Take the task's prototype."""
        total = torch.stack([self.answerer.embed(batch).sum(0) for batch in run.batches(task.train)]).sum(0)
        if self.prototypes.numel() == 0:
            self.prototypes = total.new_zeros(0, len(total))
        self.prototypes = grow_rows(self.prototypes, task.index + 1)
        self.prototypes[task.index] = total / len(task.train)

    def nearest(self, batch: Batch) -> Tensor:
        """Return the guessed task of each sample, int64 [B]."""
        vectors = F.normalize(self.answerer.embed(batch), dim=-1)
        return (vectors @ F.normalize(self.prototypes, dim=-1).t()).argmax(dim=1)

    def choice_scores(self, batch: Batch) -> list[Tensor]:
        """Return the scores of each sample's choices with the adapter of its nearest prototype."""
        return self._routed(batch, super().choice_scores)

    def generate(self, batch: Batch) -> list[str]:
        """Return what the adapter of each prompt's nearest prototype writes."""
        return self._routed(batch, super().generate)

    def _routed(self, batch: Batch, answer: Callable[[Batch], list[Any]]) -> list[Any]:
        """Answer the samples of each guessed task with its adapter, and return the answers in their order."""
        tasks = self.nearest(batch)
        found: dict[int, Any] = {}
        for index in tasks.unique().tolist():
            rows = (tasks == index).nonzero().flatten().tolist()
            self.answerer.model.set_adapter(self._name(index))  # type: ignore[operator]
            found.update(zip(rows, answer(select(batch, rows)), strict=True))
        self.answerer.model.set_adapter(self._name(self.history[-1].index))  # type: ignore[operator]
        return [found[row] for row in range(len(tasks))]
