r"""Continual learning by composition: an adapter and a head per task, and a router that adds up statistics.

Task `t` trains a LoRA of its own and the head columns of its classes `C_t`; both are frozen afterwards. A
test sample is told to belong to a task by linear discriminants between all classes seen so far, with means
and one shrunk covariance of features `z` of the pretrained model (`heads.slda`),

$$s_c(z) = m_c^\top \Sigma^{-1} z - \tfrac12 m_c^\top \Sigma^{-1} m_c, \qquad
  p(t \mid x) = \sum_{c \in C_t} \mathrm{softmax}(s)_c, \qquad
  p(c \mid x) = p(t_c \mid x)\, \mathrm{softmax}\big(W_{t_c} f_{t_c}(x) + b_{t_c}\big)_c .$$

The sum goes over the `candidates` tasks with the largest `p(t | x)`; no task id is needed. Where classes are
dealt out to tasks at random a task has no place of its own among the features, but its classes have: so
``route_by="classes"`` is the default, and ``"tasks"`` has one mean per task. The head of a task starts as the
discriminants between its classes, from the same features as its adapter's, at the loss of held-out rows,
which leaves something to learn (`heads.start`); training goes on from there.

Nothing that an old task learned ever changes. So a task is forgotten only where its samples go to another
one, and `Compose.report` says how many do. The router keeps counts, means and one scatter, and no sample.
A sample costs one forward of the base for the router, up to its block, and one with the adapter of each
candidate.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, Learner, Outcome, TaskRun
from moe_adapt.learners.heads.base import direction
from moe_adapt.learners.heads.per_task import TaskHeads
from moe_adapt.learners.heads.slda import SldaHead
from moe_adapt.learners.heads.start import discriminant_start
from moe_adapt.learners.instructions.base import select
from moe_adapt.learners.task_routes import REFERENCE, RouteCount, block_path, features_at
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["Compose"]


@LEARNERS.register("compose")
class Compose(Learner):
    """An adapter and a head per task, and a router over tasks that adds up statistics.

    Args:
        backbone: The encoder.
        tuner: The adapter of one task; None trains a head per task over the frozen encoder.
        block: After how many blocks of the encoder a sample is routed; None takes the encoder's own features
            between classes, and the middle block between tasks, if there are blocks.
        shrinkage: Weight of the identity in the router's covariance, in [0, 1]; None takes the
            oracle-approximating weight of the mean variance.
        route_by: Means of ``classes``, or of ``tasks``, if every task has a subject of its own.
        candidates: How many tasks answer a sample, each with its probability. Higher: a sample that the
            router is not sure of may still be answered right; costs as many forwards.
        head_start: Whether a task's head starts as discriminants between its classes, or at zero.
        normalize: Whether router and heads read features by their direction alone, scaled to length one.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the encoder has no such block, or an option is out of range.
    """

    reference = REFERENCE

    def __init__(
        self,
        backbone: Encoder,
        tuner: RoutedLoraConfig | None = None,
        block: int | None = None,
        shrinkage: float | None = None,
        route_by: Literal["classes", "tasks"] = "classes",
        candidates: int = 1,
        head_start: bool = True,
        normalize: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(backbone=backbone, **settings)
        if route_by not in ("classes", "tasks"):
            raise UserError(f"route_by is 'classes' or 'tasks', got {route_by!r}.")
        if candidates < 1:
            raise UserError(f"candidates must be at least 1, got {candidates}.")
        self.tuner, self.block, self.shrinkage = tuner, block, shrinkage
        self.route_by, self.candidates, self.head_start = route_by, candidates, head_start
        self.normalize = normalize
        own = block is None and route_by == "classes"
        self._path = None if own else block_path(backbone.model, block)
        if tuner is not None:
            backbone.adapt(tuner)
        self.heads = TaskHeads(backbone.width)
        self.router = self._discriminants(backbone.width)
        self._routed = RouteCount()

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        assert isinstance(self.backbone, Encoder)
        return self.backbone

    def _discriminants(self, width: int) -> SldaHead:
        return SldaHead(width, "oas" if self.shrinkage is None else self.shrinkage)

    def encode(self, batch: Batch) -> Tensor:
        """Return what heads read, [B, d]."""
        features = super().encode(batch)
        return direction(features) if self.normalize else features

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

    def _classes(self, task: int, device: torch.device) -> Tensor:
        return torch.tensor(self.history[task].classes, device=device)

    def restore(self, history: Iterable[TaskRecord], state: Mapping[str, Tensor]) -> None:
        """Become the learner that had this history and this state (see `Learner.restore`)."""
        if "router.means" in state:
            self.router = self._discriminants(state["router.means"].shape[1])
        super().restore(history, state)

    # Training.

    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Start the head from discriminants between the task's classes, then train adapter and head."""
        if self.head_start:
            self._start_head(task, run)
        run.fit()

    @torch.no_grad()
    def _start_head(self, task: Task, run: TaskRun) -> None:
        self.eval()
        pairs = [(self.encode(batch), batch["labels"]) for batch in run.batches(task.train)]
        features, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        own = torch.searchsorted(self._classes(task.index, labels.device), labels)
        start = discriminant_start(features, own, len(task.classes))
        for name, value in zip(("weight", "bias"), start, strict=True):
            rows = self.heads.new(name)
            assert rows is not None
            rows.copy_(value)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy over the classes of the task at hand."""
        task = len(self.history) - 1
        logits = self.heads(self.encode(batch), self._rows(task))
        classes = self._classes(task, logits.device)
        targets = (batch["labels"][:, None] == classes).int().argmax(dim=1)
        return {"cross_entropy": F.cross_entropy(logits, targets)}

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Add the task to the router, and count routes anew."""
        for batch in run.batches(task.train):
            features, labels = self.features(batch), batch["labels"]
            if features.shape[1] != self.router.width and self.router.num_classes == 0:
                self.router = self._discriminants(features.shape[1]).to(features.device)
            self.router.update(features, labels if self.route_by == "classes" else labels * 0 + task.index)
        self._routed.clear()

    # Prediction.

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Return what samples are routed by: features of the pretrained model, float32 [B, d]."""
        found = self._bare_features(batch).float()
        return direction(found) if self.normalize else found

    def _bare_features(self, batch: Batch) -> Tensor:
        if "features" in batch:
            return batch["features"]
        tuner = self.encoder.tuner
        bare = nullcontext() if tuner is None else tuner.hooks.samples.bare()
        with bare:
            if self._path is None:
                return self.encoder(batch)
            base: nn.Module = self.encoder.model if tuner is None else tuner.model
            mask = batch.get("attention_mask")
            return features_at(base, self._path, lambda: self.encoder(batch), lambda: mask)

    @torch.no_grad()
    def task_probabilities(self, batch: Batch) -> Tensor:
        """Return the probabilities of a sample's task, [B, T]; of the first one before any has ended."""
        features, tasks = self.features(batch), len(self.history)
        found = torch.zeros(len(features), tasks, device=features.device)
        if self.router.num_classes == 0:
            found[:, 0] = 1.0
            return found
        rows = self.router(features).softmax(dim=1).to(found.dtype)
        if self.route_by == "tasks":
            found[:, : rows.shape[1]] = rows
            return found
        for task, record in enumerate(self.history):
            known = [label for label in record.classes if label < rows.shape[1]]
            found[:, task] = rows[:, known].sum(dim=1)
        return found

    def route(self, batch: Batch) -> Tensor:
        """Return the most probable task of each sample, int64 [B]."""
        return self.task_probabilities(batch).argmax(dim=1)

    def scores(self, batch: Batch) -> Tensor:
        """Return probabilities [B, C_seen] from the candidate tasks of each sample, 0 for other classes."""
        return self._mixed(batch, self.task_probabilities(batch))

    def _mixed(self, batch: Batch, probabilities: Tensor) -> Tensor:
        """Return the answers of the candidates by their probabilities [B, T]."""
        weights, tasks = probabilities.topk(min(self.candidates, probabilities.shape[1]), dim=1)
        weights = weights / weights.sum(dim=1, keepdim=True)
        answers = [weights[:, at, None] * self.scores_by(batch, tasks[:, at]) for at in range(tasks.shape[1])]
        return torch.stack(answers).sum(dim=0)

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
            classes = self._classes(task, tasks.device)
            found[rows[:, None], classes] = logits.softmax(dim=1).to(found.dtype)
        self._use(len(self.history) - 1)
        return found

    def _use(self, task: int) -> None:
        if self.tuner is not None:
            self.encoder.model.set_adapter(self._name(task))  # type: ignore[operator]

    def evaluate(self, batch: Batch, within: Tensor) -> Outcome:
        """Say which test samples are right; within its own task a sample has that task's adapter and head."""
        probabilities, labels = self.task_probabilities(batch), batch["labels"]
        own = self._own(within)
        prediction = self._mixed(batch, probabilities).argmax(dim=1)
        correct = prediction == labels
        inside = correct.clone()
        wrong = torch.nonzero(~correct)[:, 0]
        if len(wrong):
            answers = self.scores_by(select(batch, wrong.tolist()), own[wrong]).argmax(dim=1)
            inside[wrong] = answers == labels[wrong]
        self._routed.add(own.tolist(), probabilities.argmax(dim=1).tolist())
        return Outcome(correct, prediction, inside)

    def _own(self, within: Tensor) -> Tensor:
        """Return the task whose classes are nearest to those that each sample's task has, int64 [B]."""
        classes = torch.zeros(len(self.history), self.num_seen, dtype=torch.bool, device=within.device)
        for task, record in enumerate(self.history):
            classes[task, list(record.classes)] = True
        return (within[:, None] == classes).sum(dim=2).argmax(dim=1)

    def report(self) -> dict[str, Any]:
        """Return where the test samples since the task's end went (`RouteCount.report`)."""
        return self._routed.report(len(self.history))
