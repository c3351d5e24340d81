r"""Instructions by composition: an adapter per task, and a router over tasks that adds up statistics.

As `PrototypeLoRA`, but samples are told apart by linear discriminants on the mean hidden state of their
prompt after a middle block of the pretrained model (`moe_adapt.routing.sample`):

$$t(x) = \arg\max_t\; m_t^\top \Sigma^{-1} x - \tfrac12 m_t^\top \Sigma^{-1} m_t .$$

Adapters are frozen after their task and statistics add up, so nothing that an old task learned changes. A
task is forgotten only where its samples go to another one; the report of every task says how many do, which
makes the matrix of routes over time. No sample and no text is kept.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.learners.base import LEARNERS, Outcome, TaskRun
from moe_adapt.learners.growth import TensorStore
from moe_adapt.learners.instructions.prototypes import PrototypeLoRA
from moe_adapt.learners.task_routes import (
    REFERENCE,
    RouteCount,
    block_path,
    features_at,
    task_router,
    task_uid,
)
from moe_adapt.routing.sample import SampleRule
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["ComposeInstructions"]


@LEARNERS.register("compose_instructions")
class ComposeInstructions(PrototypeLoRA):
    """An adapter per task, chosen by discriminants of prompts in a middle block.

    Args:
        backbone: The model.
        tuner: The adapter of one task.
        block: After how many blocks of the model a prompt is routed; None takes the middle one, or the
            model's own vector of a prompt if it has no blocks.
        shrinkage: Of the router's covariance, in [0, 1]; None takes the oracle-approximating one.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the model has no such block, or the shrinkage is out of range.
    """

    reference = REFERENCE

    def __init__(
        self,
        backbone: InstructionModel,
        tuner: RoutedLoraConfig,
        block: int | None = None,
        shrinkage: float | None = None,
        **settings: Any,
    ) -> None:
        path = block_path(backbone.model, block)
        super().__init__(backbone, tuner, **settings)
        self.block, self.shrinkage, self._path = block, shrinkage, path
        self.moments = TensorStore()
        task_router(self.moments, shrinkage)  # refuses a shrinkage that is none
        self._rule: list[SampleRule] = []
        self._went: list[int] = []
        self._routes = RouteCount()

    def restore(self, history: Iterable[TaskRecord], state: Mapping[str, Tensor]) -> None:
        """Become the learner that had this history and this state (see `Learner.restore`)."""
        prefix = "moments."
        for name, value in state.items():
            if name.startswith(prefix):
                self.moments[name.removeprefix(prefix)] = torch.empty_like(value)
        self._rule.clear()
        super().restore(history, state)

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Add the task to the router, and count routes anew."""
        router = task_router(self.moments, self.shrinkage)
        features = torch.cat([self.features(batch) for batch in run.batches(task.train)])
        router.observe(features, task_uid(task.index))
        for name, value in router.state().items():
            self.moments[name] = value.to(self.device)
        self._rule.clear()
        self._routes.clear()

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Return what prompts are routed by: mean hidden states of the pretrained model, float32 [B, d]."""
        if self._path is None:
            return self.answerer.embed(batch).float()
        masks: list[Tensor | None] = []

        def ask(_: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
            masks.append(inputs.get("attention_mask"))

        base = self.peft_tuner.model
        handle = base.register_forward_pre_hook(ask, with_kwargs=True)
        try:
            with self.answerer.without_adapter():
                return features_at(
                    base,
                    self._path,
                    run=lambda: self.answerer.run(batch),
                    mask=lambda: masks[0] if masks else None,
                )
        finally:
            handle.remove()

    def nearest(self, batch: Batch) -> Tensor:
        """Return the guessed task of each sample, int64 [B]; the first one before any has ended."""
        features = self.features(batch)
        if not len(self.moments):
            return torch.zeros(len(features), dtype=torch.int64, device=features.device)
        if not self._rule:
            self._rule.append(task_router(self.moments, self.shrinkage).rule())
        return self._rule[0].to(features.device)(features)[0].argmax(dim=1)

    def evaluate(self, batch: Batch, within: Tensor) -> Outcome:
        """Say which answers are right, and remember which task each sample went to."""
        self._went = self.nearest(batch).tolist()
        return super().evaluate(batch, within)

    def after_test(self, own: Tensor) -> None:
        """Count the routes of the batch that was evaluated last."""
        self._routes.add(own.tolist(), self._went)

    def report(self) -> dict[str, Any]:
        """Return sizes, and where the test samples since the task's end went (`RouteCount.report`)."""
        return super().report() | self._routes.report(len(self.history))
