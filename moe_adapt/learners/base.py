"""The contract of a continual learner.

A stream runner calls, for every task: `begin_task` (grow here, before any optimiser exists), `learn_task` (by
default one fit with a fresh Lightning trainer), `end_task` (freeze, consolidate, collect statistics), and
then `evaluate` on test samples of everything seen. A learner sees one `Task` at a time and never the stream.

* A **gradient learner** says what its `losses` are, by name, and what `scores` it gives.
* A **closed-form learner** overrides `learn_task` and goes through ``run.batches(task.train)`` instead.
* A learner of tasks **without classes** (instructions) overrides `evaluate` and says itself what is right.

What a learner knows is in its ``state_dict``: parameters, and statistics as buffers. A fresh learner becomes
an old one by `restore`: it grows as it grew (`grow` is called for every task of its history), makes its
buffers as large as the saved ones (`grow_to`), and loads. So growth has to follow from the records of the
tasks, or `grow_to` has to find it in the saved tensors.

Predictions never depend on the task or on what else is in the batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from moe_adapt.extras import advice

try:
    import lightning as L
    from lightning.pytorch.cli import OptimizerCallable
except ModuleNotFoundError as missing:
    raise advice(missing.name or "", "moe_adapt.learners") or missing from missing

import torch
from torch import Tensor, nn

from moe_adapt.backbones import Encoder, Pretrained
from moe_adapt.backbones.pretrained import set_train_mode
from moe_adapt.errors import UserError
from moe_adapt.hub.card_parts import CardParts
from moe_adapt.hub.publishable import Publishable
from moe_adapt.learners.card import learner_card_parts
from moe_adapt.learners.growth import check_parameters, resize_to
from moe_adapt.learners.parts import learner_from_parts, learner_parts
from moe_adapt.optim.groups import Schedule, check_coverage, parameter_groups, with_schedule
from moe_adapt.registry import Registry
from moe_adapt.signatures import as_json, constructor_arguments
from moe_adapt.streams import Batch, Examples, Task, TaskRecord
from moe_adapt.tuner.loading import is_adapter_key

__all__ = ["LEARNERS", "Learner", "Outcome", "TaskRun"]


class Outcome(NamedTuple):
    """What became of a batch of test samples.

    Attributes:
        correct: Whether each answer is right, bool [B].
        prediction: The predicted class, int64 [B]; -1 where there are no classes.
        correct_within: Whether it is right if only the classes of the sample's own task are candidates, bool
            [B]: the task-incremental reading.
    """

    correct: Tensor
    prediction: Tensor
    correct_within: Tensor


class TaskRun(Protocol):
    """What the runner does for a learner while a task is learned."""

    def fit(self, data: Examples | None = None, epochs: int | None = None) -> None:
        """Train with a fresh trainer: new optimiser, new schedule, a seed of its own.

        Args:
            data: The training samples; those of the task if not given.
            epochs: Passes over them; the learner's `epochs` if not given.
        """

    def batches(self, data: Examples, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield the samples in their order, without augmentation, on the learner's device.

        Args:
            data: The samples.
            batch_size: Samples per batch; the runner's evaluation batch size if not given.
        """


class Learner(Publishable, L.LightningModule):
    """A model that learns task after task.

    Logs ``train/loss`` and ``train/<name>`` for every named loss.

    Args:
        backbone: The pretrained model; None for a learner that builds its own.
        epochs: Passes over the training samples of each task. Higher: fits each task better; without
            protection, forgets more.
        batch_size: Samples per training step.
        lr: Learning rate of whatever has no learning rate of its own. Higher: learns faster and forgets more.
        head_lr: Learning rate of the head; None for `lr`.
        router_lr: Learning rate of the routers; None for `lr`.
        weight_decay: Weight decay of the head, and of a backbone that is trained whole. Routers and experts
            have none.
        optimizer: Constructor of the optimiser; it gets groups that carry their own learning rate and weight
            decay.
        schedule: How the learning rate goes on after the warm-up within each fit, step by step.
        warmup: Fraction of the steps of a fit over which the learning rate grows linearly.

    Attributes:
        history: The tasks begun so far.
    """

    published_kind: ClassVar[str] = "learner"
    #: ``task``: learn one task after the other. ``all``: get all training samples at once (joint training).
    trains_on: ClassVar[str] = "task"
    #: Whether batches carry ``task_ids`` [B], at test time too: for oracles, and said in every result.
    needs_task_id: ClassVar[bool] = False
    #: Whether processes may share out its training steps: all it takes from them is gradients and
    #: `summed_buffers`.
    distributable: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Pretrained | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        lr: float = 1e-3,
        head_lr: float | None = None,
        router_lr: float | None = None,
        weight_decay: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = "constant",
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.")
        if not 0.0 <= warmup < 1.0:
            raise UserError(f"warmup is a fraction of all steps between 0 and 1, got {warmup}.")
        self.backbone = backbone
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.head_lr = head_lr
        self.router_lr = router_lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.schedule: Schedule = schedule
        self.warmup = warmup
        self.history: list[TaskRecord] = []
        self._rate_left = 0.0  # of the learning rate at the end of a fit

    @property
    def num_seen(self) -> int:
        """Classes seen so far, ``C_seen``."""
        return self.history[-1].num_seen if self.history else 0

    # What the runner calls.

    def begin_task(self, task: Task) -> None:
        """Note the task and grow for it; no optimiser exists yet."""
        self.history.append(task.record())
        self.grow(self.history[-1])

    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Learn the task; by default one fit on its training samples."""
        run.fit()

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Freeze, consolidate or collect statistics; the learner is in evaluation mode, without gradients."""

    def evaluate(self, batch: Batch, within: Tensor) -> Outcome:
        """Say which test samples are answered right.

        Args:
            batch: The samples, with ``labels`` [B].
            within: Which classes the task of each sample has, bool [B, C_seen]: for the task-incremental
                reading, never for the prediction.
        """
        scores = self.scores(batch)
        labels = batch["labels"]
        prediction = scores.argmax(dim=1)
        correct = prediction == labels
        inside = correct.clone()  # what is best of all is best within its task
        wrong = torch.nonzero(~correct)[:, 0]
        candidates = scores[wrong].masked_fill(~within[wrong], float("-inf"))
        inside[wrong] = candidates.argmax(dim=1) == labels[wrong]
        return Outcome(correct, prediction, inside)

    def after_test(self, own: Tensor) -> None:
        """Take note of the tasks of the samples that were evaluated last, for reports alone.

        Args:
            own: Task of each sample, int64 [B].
        """

    # What a subclass says.

    def grow(self, record: TaskRecord) -> None:
        """Make room for the classes of a task; called for every task, also when a learner is restored."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a training batch by name, scalars; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} trains by gradient but has no losses()")

    def scores(self, batch: Batch) -> Tensor:
        """Return scores over the classes seen so far, [B, C_seen]; the largest is the prediction."""
        raise NotImplementedError(f"{type(self).__name__} has no scores()")

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by role: ``router``, ``experts``, ``backbone``, ``head``."""
        groups: dict[str, list[nn.Parameter]] = {"router": [], "experts": [], "backbone": [], "head": []}
        placed: set[int] = set()
        if self.backbone is not None:
            tuner = self.backbone.tuner
            if tuner is not None:
                own = tuner.parameter_groups()
                groups["router"] = [p for _, p in own["router"]]
                groups["experts"] = [p for _, p in own["experts"]]
                placed = {id(p) for p in (*groups["router"], *groups["experts"])}
            groups["backbone"] = [
                p for p in self.backbone.parameters() if p.requires_grad and id(p) not in placed
            ]
            placed |= {id(p) for p in groups["backbone"]}
        groups["head"] = [p for p in self.parameters() if p.requires_grad and id(p) not in placed]
        return groups

    # Shared parts.

    def encode(self, batch: Batch) -> Tensor:
        """Return features [B, d]: those in the batch if the stream was encoded before, else the encoder's."""
        if "features" in batch:
            return batch["features"]
        assert isinstance(self.backbone, Encoder), "features come from an encoder, or with the stream"
        return self.backbone(batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Return the predicted class of each sample, int64 [B]."""
        return self.scores(batch).argmax(dim=1)

    def forward(self, batch: Batch) -> Tensor:
        """Return `scores`."""
        return self.scores(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses, auxiliary losses of routers included.

        Raises:
            UserError: If it is not finite; nothing has been updated then.
        """
        losses = self.losses(batch)
        if self.backbone is not None and self.backbone.tuner is not None:
            losses = {**losses, "aux": self.backbone.tuner.aux_loss()}
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
            raise UserError(
                f"the loss is not finite in task {self.history[-1].index}, epoch {self.current_epoch}, "
                f"batch {batch_idx}: {values}. The step was not taken; lower the learning rate or look at "
                "that batch."
            )
        self.log_dict(
            {"train/loss": total.detach(), **{f"train/{k}": v.detach() for k, v in losses.items()}},
            batch_size=batch["row"].shape[0],
        )
        return total

    def configure_optimizers(self) -> Any:
        """Return the optimiser over router, experts, backbone and head, and its schedule."""
        parameters = self.trainable_parameters()
        if not any(parameters.values()):
            raise UserError(f"{type(self).__name__} has nothing to train: no head, no adapter.")
        rates = {"router": self.router_lr, "experts": None, "backbone": None, "head": self.head_lr}
        lr = {role: self.lr if rate is None else rate for role, rate in rates.items()}
        optimizer = self.optimizer(parameter_groups(parameters, lr, self.weight_decay))
        check_coverage(optimizer, self)
        if self.backbone is not None and self.backbone.tuner is not None:
            self.backbone.tuner.follow(optimizer)
        return with_schedule(
            optimizer,
            self.schedule,
            self.warmup,
            lambda: self.trainer.estimated_stepping_batches,
            self._rate_left,
        )

    def train(self, mode: bool = True) -> "Learner":
        """Set training mode; statistics and dropout of a frozen backbone stay off."""
        super().train(mode)
        if self.backbone is not None:
            frozen = not any(p.requires_grad for p in self.backbone.parameters())
            set_train_mode(self.backbone, mode, probing=frozen)
        return self

    def on_fit_start(self) -> None:
        """Enter training mode, which pretrained models do not come in."""
        self.train()

    # State.

    def summed_buffers(self) -> set[str]:
        """Return the buffers that every process fills from its own training rows, to be summed later."""
        return set()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON types: what a resumed run must agree with."""
        found = {
            name: as_json(getattr(self, name))
            for name in constructor_arguments(type(self))
            if hasattr(self, name)
        }
        return {"learner": type(self).__name__, **found}

    def base_names(self) -> set[str]:
        """Return the names of the pretrained tensors, which checkpoints leave out.

        Everything of the backbone that is not ours (``moe_adapt_`` in its name); nothing if some of it is
        trained.
        """
        if self.backbone is None:
            return set()
        base = {f"backbone.{name}" for name in self.backbone.state_dict() if not is_adapter_key(name)}
        trained = any(
            p.requires_grad and f"backbone.{name}" in base for name, p in self.backbone.named_parameters()
        )
        return set() if trained else base

    def learner_state(self) -> dict[str, Tensor]:
        """Return what was learned: the state without the pretrained tensors."""
        base = self.base_names()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in base}

    def report(self) -> dict[str, Any]:
        """Return what is worth knowing about the task that has just ended, as numbers and texts by name."""
        return {}

    def memory_bytes(self) -> dict[str, int]:
        """Return the bytes of what is kept beside the pretrained tensors, by kind."""
        state = {name: t for name, t in self.learner_state().items() if isinstance(t, Tensor)}
        names = {name for name, _ in self.named_parameters()} & state.keys()
        parameters = sum(state[name].nbytes for name in names)
        return {"parameters": parameters, "statistics": sum(t.nbytes for t in state.values()) - parameters}

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return class, arguments, tasks and backbone as JSON types, and what was learned as tensors."""
        return learner_parts(self)

    @classmethod
    def from_parts(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Any) -> Any:
        """Return the learner that `to_parts` was called on, in evaluation mode."""
        return learner_from_parts(content, tensors, cls, LEARNERS, backbone)

    @classmethod
    def card_parts(cls, content: Mapping[str, Any], manifest: Mapping[str, Any]) -> CardParts:
        """Return what the card of a learner tells: its base, its tasks, how to open it."""
        return learner_card_parts(content, manifest)

    def grow_to(self, state: Mapping[str, Tensor]) -> None:
        """Make buffers as large as those of `state`, which is loaded next.

        Parameters follow from the tasks (`grow`); a learner whose do not overrides this.

        Raises:
            UserError: If a tensor has a shape that it cannot have grown to.
        """
        check_parameters(self, state)
        resize_to(self, state)

    def restore(self, history: Iterable[TaskRecord], state: Mapping[str, Tensor]) -> None:
        """Become the learner that had this history and this state.

        Raises:
            UserError: If tensors are missing, unexpected, or of another shape.
        """
        self.history = []
        for record in history:
            self.history.append(record)
            self.grow(record)
        self.grow_to(state)
        own = self.learner_state()
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())
            raise UserError(
                f"the saved state does not fit {type(self).__name__}: {len(differing)} tensors are only on "
                f"one side ({', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''})."
            )
        try:
            self.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"the saved state does not fit {type(self).__name__}: {reason}") from error


#: Learners by short name.
LEARNERS: Registry[Learner] = Registry("learner")
