r"""Continual learning by composition: an adapter and a head per task, and a router that adds up statistics.

Task `t` trains a LoRA of its own and the head columns of its classes; both are frozen afterwards. Its
training samples, as mean hidden states of a middle block of the pretrained model, become one more class of a
linear discriminant analysis (`moe_adapt.routing.sample`),

$$t(x) = \arg\max_t\; m_t^\top \Sigma^{-1} x - \tfrac12 m_t^\top \Sigma^{-1} m_t, \qquad
  p(c \mid x) = \mathrm{softmax}\big(W_{t(x)} f_{t(x)}(x) + b_{t(x)}\big)_c .$$

A test sample goes to one task and is answered among that task's classes; no task id is needed. Nothing that
an old task learned ever changes. So a task is forgotten only where its samples go to another one, and
`Compose.report` says how many do. The router keeps a count, a mean and a scatter per task, and no sample.

A sample costs the base up to the router's block, and one forward with the adapter of its task.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.learners.base import LEARNERS, Learner, Outcome, TaskRun
from moe_adapt.learners.growth import TensorStore
from moe_adapt.learners.heads.per_task import TaskHeads
from moe_adapt.learners.instructions.base import select
from moe_adapt.learners.task_routes import block_path, hidden_at, route_report, task_router, task_uid
from moe_adapt.routing.sample import SampleRule
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.blocks import block_features

__all__ = ["Compose"]


@LEARNERS.register("compose")
class Compose(Learner):
    """An adapter and a head per task, and a router over tasks that adds up statistics.

    Args:
        backbone: The encoder.
        tuner: The adapter of one task; None trains a head per task over the frozen encoder.
        block: After how many blocks of the encoder a sample is routed; None takes the middle one, or the
            encoder's own features if it has no blocks or they came with the stream.
        shrinkage: Of the router's covariance, in [0, 1]; None takes the oracle-approximating one.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the encoder has no such block, or the shrinkage is out of range.
    """

    reference = "no paper: adapters trained apart, composed by a router of ours"

    def __init__(
        self,
        backbone: Encoder,
        tuner: RoutedLoraConfig | None = None,
        block: int | None = None,
        shrinkage: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(backbone=backbone, **settings)
        self.tuner, self.block, self.shrinkage = tuner, block, shrinkage
        self._path = block_path(backbone.model, block)
        if tuner is not None:
            backbone.adapt(tuner)
        self.heads = TaskHeads(backbone.width)
        self.moments = TensorStore()
        task_router(self.moments, shrinkage)  # refuses a shrinkage that is none
        self._rule: list[SampleRule] = []
        self._routed: Counter[tuple[int, int]] = Counter()

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        assert isinstance(self.backbone, Encoder)
        return self.backbone

    # Growth.

    def grow(self, record: TaskRecord) -> None:
        """Freeze what there is; add the adapter and the head of a task, the only ones that train."""
        self.heads.add(len(record.classes))
        if self.tuner is None:
            return
        model: Any = self.encoder.model
        name = self._name(record.index)
        if name not in model.peft_config:
            model.add_adapter(name, self.tuner)
        model.set_adapter(name)

    @staticmethod
    def _name(task: int) -> str:
        return "default" if task == 0 else f"task_{task}"

    def _rows(self, task: int) -> slice:
        """Return where the head of a task is among all rows."""
        first = sum(len(record.classes) for record in self.history[:task])
        return slice(first, first + len(self.history[task].classes))

    def restore(self, history: Iterable[TaskRecord], state: Mapping[str, Tensor]) -> None:
        """Become the learner that had this history and this state (see `Learner.restore`)."""
        prefix = "moments."
        for name, value in state.items():
            if name.startswith(prefix):
                self.moments[name.removeprefix(prefix)] = torch.empty_like(value)
        self._rule.clear()
        super().restore(history, state)

    # Training.

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy over the classes of the task at hand."""
        task = len(self.history) - 1
        logits = self.heads(self.encode(batch), self._rows(task))
        classes = torch.tensor(self.history[task].classes, device=logits.device)
        targets = (batch["labels"][:, None] == classes).int().argmax(dim=1)
        return {"cross_entropy": F.cross_entropy(logits, targets)}

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Add the task to the router, and count routes anew."""
        router = task_router(self.moments, self.shrinkage)
        router.observe(
            torch.cat([self.features(batch) for batch in run.batches(task.train)]), task_uid(task.index)
        )
        for name, value in router.state().items():
            self.moments[name] = value.to(self.device)
        self._rule.clear()
        self._routed.clear()

    # Prediction.

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Return what samples are routed by: mean hidden states of the pretrained model, float32 [B, d]."""
        if "features" in batch:
            return batch["features"].float()
        tuner = self.encoder.tuner
        bare = nullcontext() if tuner is None else tuner.hooks.samples.bare()
        with bare:
            if self._path is None:
                return self.encoder(batch).float()
            base: nn.Module = self.encoder.model if tuner is None else tuner.model
            hidden = hidden_at(base, self._path, lambda: self.encoder(batch))
        mask = batch.get("attention_mask")
        return block_features(hidden, None if mask is None else mask.bool())

    @torch.no_grad()
    def route(self, batch: Batch) -> Tensor:
        """Return the task that answers each sample, int64 [B]; the first one before any has ended."""
        features = self.features(batch)
        if not len(self.moments):
            return torch.zeros(len(features), dtype=torch.int64, device=features.device)
        if not self._rule:
            self._rule.append(task_router(self.moments, self.shrinkage).rule())
        scores, _ = self._rule[0].to(features.device)(features)
        return scores.argmax(dim=1)

    def scores(self, batch: Batch) -> Tensor:
        """Return probabilities [B, C_seen] within the task that each sample goes to, 0 for other classes."""
        return self.scores_by(batch, self.route(batch))

    def scores_by(self, batch: Batch, tasks: Tensor) -> Tensor:
        """Return probabilities [B, C_seen] with the adapter and head of given tasks.

        Args:
            batch: The samples.
            tasks: The task that answers each, int64 [B].
        """
        found = torch.zeros(len(tasks), self.num_seen, device=tasks.device)
        for task in tasks.unique().tolist():
            rows = (tasks == task).nonzero().flatten()
            self._use(task)
            logits = self.heads(self.encode(select(batch, rows.tolist())), self._rows(task))
            classes = torch.tensor(self.history[task].classes, device=tasks.device)
            found[rows[:, None], classes] = logits.softmax(dim=1).to(found.dtype)
        self._use(len(self.history) - 1)
        return found

    def _use(self, task: int) -> None:
        if self.tuner is not None:
            self.encoder.model.set_adapter(self._name(task))  # type: ignore[operator]

    def evaluate(self, batch: Batch, within: Tensor) -> Outcome:
        """Say which test samples are right; within its own task a sample has that task's adapter and head."""
        tasks, labels = self.route(batch), batch["labels"]
        own = self._own(within)
        prediction = self.scores_by(batch, tasks).argmax(dim=1)
        correct = prediction == labels
        inside = correct.clone()
        elsewhere = torch.nonzero(~correct & (tasks != own))[:, 0]
        if len(elsewhere):
            answers = self.scores_by(select(batch, elsewhere.tolist()), own[elsewhere]).argmax(dim=1)
            inside[elsewhere] = answers == labels[elsewhere]
        self._routed.update(zip(own.tolist(), tasks.tolist(), strict=True))
        return Outcome(correct, prediction, inside)

    def _own(self, within: Tensor) -> Tensor:
        """Return the task whose classes are nearest to those that each sample's task has, int64 [B]."""
        classes = torch.zeros(len(self.history), self.num_seen, dtype=torch.bool, device=within.device)
        for task, record in enumerate(self.history):
            classes[task, list(record.classes)] = True
        return (within[:, None] == classes).sum(dim=2).argmax(dim=1)

    def report(self) -> dict[str, Any]:
        """Return where the test samples since the task's end went (`route_report`)."""
        return route_report(self._routed, len(self.history))
