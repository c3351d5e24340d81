"""What every adapted model shares: the adapter, its optimiser, its checkpoints, its checks.

A subclass builds a `Backbone` and says what its task loss is; `AdaptedModule` wraps the backbone with the
tuner (or freezes all but the head when there is none: the linear probe), adds the auxiliary losses of the
routers, and stops a run that has gone wrong with one sentence instead of training on.
"""

import copy
import enum
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import peft
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from moe_adapt.backbones.pretrained import (
    Backbone,
    enable_gradient_checkpointing,
    freeze,
    keep_in_float32,
    set_train_mode,
)
from moe_adapt.data.packages import public_name
from moe_adapt.errors import UserError
from moe_adapt.hub.fingerprint import fingerprint
from moe_adapt.optim.groups import Schedule, check_coverage, parameter_groups, with_schedule
from moe_adapt.training import checkpoint as checkpoints
from moe_adapt.training.modules.lightning_tools import LightningTools
from moe_adapt.training.procedures import Procedure
from moe_adapt.training.randomness import run_seed, seed_batch, set_rng_state
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel

__all__ = ["AdaptedModule", "Batch"]

Batch = dict[str, Tensor]


class AdaptedModule(LightningTools):
    """A frozen backbone with routed LoRA experts and a trainable head.

    Logs ``train/loss``, ``train/task_loss`` and ``train/aux/<name>``; checkpoints hold the adapter only.

    Args:
        backbone: The pretrained model and the paths of its head.
        name: Name or folder of the backbone, written into adapters and checkpoints.
        tuner: The adapter. None trains the head only, over a frozen base in evaluation mode.
        lr: Learning rate of the experts, and of router and head unless they have their own.
        router_lr: Learning rate of the routers; None for `lr`.
        head_lr: Learning rate of the head; None for `lr`.
        weight_decay: Weight decay of the head. Routers and experts have none.
        optimizer: Constructor of the optimiser; it gets groups that carry their own learning rate and weight
            decay.
        lr_scheduler: Constructor of a scheduler, stepped once per epoch (``ReduceLROnPlateau`` watches the
            module's `monitor`). None uses `schedule`.
        schedule: How the learning rate goes on after the warm-up, step by step.
        warmup: Fraction of all steps over which the learning rate grows linearly.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        procedure: How a training step is made, if not of one pass and `task_loss`.

    Attributes:
        model: The PEFT model; the bare backbone if there is no tuner.
        tuner: The tuner inside it, or None.
        monitor: The metric that chooses the best checkpoint, and whether it should be low or high.
    """

    monitor: ClassVar[tuple[str, Literal["min", "max"]]] = ("val/loss", "min")
    task_type: ClassVar[str | None] = None

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        tuner: RoutedLoraConfig | None = None,
        lr: float = 2e-4,
        router_lr: float | None = None,
        head_lr: float | None = None,
        weight_decay: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        gradient_checkpointing: bool = False,
        procedure: Procedure | None = None,
    ) -> None:
        super().__init__()
        if lr_scheduler is not None and (schedule != "constant" or warmup):
            raise UserError("give either lr_scheduler or schedule and warmup; one of them would be ignored.")
        if not 0.0 <= warmup < 1.0:
            raise UserError(f"warmup is a fraction of all steps between 0 and 1, got {warmup}.")
        self.strict_loading = (
            False  # Lightning cannot know what is base; `on_load_checkpoint` verifies instead
        )
        self.name = public_name(name)
        self.learning_rates = {
            "router": lr if router_lr is None else router_lr,
            "experts": lr,
            "head": lr if head_lr is None else head_lr,
        }
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.schedule: Schedule = schedule
        self.warmup = warmup
        self.procedure = procedure
        self.clipping: tuple[Any, Any] | None = None
        self.automatic_optimization = procedure is None or procedure.steps_per_batch is None
        if lr_scheduler is not None and not self.automatic_optimization:
            raise UserError(
                f"{type(procedure).__name__} steps the optimizer itself and cannot step lr_scheduler once "
                "per epoch; use schedule and warmup."
            )
        self.tuner_config = copy.deepcopy(tuner)
        self._seed: int | None = None
        self._total_steps: int | None = None
        self._base_fingerprint: str | None = None
        self._restored_rng: dict[str, Any] | None = None
        self._sites_checked = tuner is None
        self._answering: dict[str, Any] = {}

        keep_in_float32(backbone)
        if gradient_checkpointing:
            enable_gradient_checkpointing(backbone.model)
        self.model = self._adapt(backbone, tuner)

    def _adapt(self, backbone: Backbone, tuner: RoutedLoraConfig | None) -> nn.Module:
        if tuner is None:
            freeze(backbone)
            return backbone.model
        config = copy.deepcopy(tuner)
        config.task_type = self.task_type
        config.modules_to_save = sorted({*(config.modules_to_save or []), *backbone.head}) or None
        backbone.model.name_or_path = self.name  # type: ignore[assignment]
        model = peft.get_peft_model(backbone.model, config)
        adapted: Any = model.base_model
        adapted.hooks.uncalled.told = True  # `on_train_batch_end` refuses what it would warn about
        return model

    @property
    def tuner(self) -> RoutedLoraModel | None:
        """The tuner, which holds losses and statistics of the routers; None for a linear probe."""
        return None if self.tuner_config is None else self.model.base_model  # type: ignore[return-value]

    # What a subclass says.

    @abstractmethod
    def task_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a training batch without auxiliary losses, a scalar."""

    def scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of `task_loss` and the logits [N, C] it judges, of one forward, for procedures.

        Raises:
            UserError: If the class does not say them.
        """
        raise UserError(
            f"{type(self).__name__} gives procedures no logits; it can train without model.procedure only."
        )

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the subclass's settings that shape the model, as JSON types."""

    def for_routers(self, batch: Batch) -> Batch:
        """Return the inputs of a batch that routers look at and the model does not know."""
        return {} if self.tuner is None or "domain_ids" not in batch else {"domain_ids": batch["domain_ids"]}

    # Training.

    def train(self, mode: bool = True) -> "AdaptedModule":
        """Set training mode; statistics of a frozen base never change."""
        super().train(mode)
        set_train_mode(self.model, mode, probing=self.tuner_config is None)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return task loss plus auxiliary losses, or what the procedure returns.

        Raises:
            UserError: If the loss is not finite; nothing has been updated then.
        """
        if self.procedure is not None:
            return self._procedure_step(self.procedure, batch, batch_idx)
        task = self.task_loss(batch)
        loss, parts = task, {}
        if self.tuner is not None:
            loss = task + self.tuner.aux_loss()
            parts = {f"train/aux/{name}": value for name, value in self.tuner.aux_losses().items()}
        if not torch.isfinite(loss):
            self._stop_not_finite(batch_idx, {"train/task_loss": task.detach(), **parts})
        size = next(iter(batch.values())).shape[0]
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({"train/task_loss": task.detach(), **parts}, batch_size=size)
        return loss

    def configure_callbacks(self) -> Any:
        """Take gradient clipping over from the trainer if the procedure steps the optimizer itself."""
        if not self.automatic_optimization and self.trainer.gradient_clip_val is not None:
            self.clipping = (self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)
            self.trainer.gradient_clip_val = None
        return super().configure_callbacks()

    def _procedure_step(self, procedure: Procedure, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = procedure.step(self, batch)
        if loss is not None:
            if not torch.isfinite(loss):
                self._stop_not_finite(batch_idx, {"train/loss": loss.detach()})
            self.log("train/loss", loss, prog_bar=True, batch_size=next(iter(batch.values())).shape[0])
        return loss

    def _steps_in_all(self) -> float:
        """Return how many optimizer steps the fit takes, or infinity."""
        batches = self.trainer.estimated_stepping_batches
        own = 1 if self.procedure is None else self.procedure.steps_per_batch or 1
        limit = self.trainer.max_steps
        return batches if limit != -1 and batches == limit else batches * own

    def _stop_not_finite(self, batch_idx: int, parts: dict[str, Tensor]) -> None:
        values = ", ".join(f"{name} {float(value):g}" for name, value in parts.items())
        broken = [] if self.tuner is None else self.tuner.broken_sites()
        if broken:
            values += (
                f"; the router logits are not finite at {broken[0]!r}, the first of {len(broken)} layers"
            )
        raise UserError(
            f"the loss is not finite at step {self.global_step} (epoch {self.current_epoch}, batch "
            f"{batch_idx}): {values}. The step was not taken and the last checkpoint is kept; lower the "
            "learning rate, clip gradients (trainer.gradient_clip_val) or look at that batch."
        )

    def on_fit_start(self) -> None:
        """Enter training mode; restore a resumed run's generators."""
        self.train()
        if self.procedure is not None:
            self.procedure.check(self)
        total = self._steps_in_all()
        self._total_steps = None if total == float("inf") else max(1, int(total))
        if self._restored_rng is not None:
            set_rng_state(self._restored_rng)
            self._restored_rng = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed this batch (`moe_adapt.training.randomness`); tell the routers how far training is."""
        if self.tuner is not None and self._total_steps is not None:
            self.tuner.progress = min(1.0, self.global_step / self._total_steps)
        seed_batch(self.seed, self.global_rank, self.current_epoch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Check once that every adapted layer was reached.

        Raises:
            UserError: If some were not; their experts would never train.
        """
        if self._sites_checked or self.tuner is None:
            return
        self._sites_checked = True
        uncalled = self.tuner.uncalled_sites()
        if uncalled:
            raise UserError(
                f"{len(uncalled)} adapted layers were not reached by the first training batch "
                f"({', '.join(uncalled[:5])}{', ...' if len(uncalled) > 5 else ''}): the model bypasses "
                "them or reads their weight directly; leave them out with exclude_modules."
            )

    def configure_optimizers(self) -> Any:
        """Return the optimiser over router, experts and head, and its schedule."""
        parameters = self.trainable_parameters()
        if not any(parameters.values()) and self.tuner is not None:
            raise UserError(
                "nothing has to be trained: all experts are frozen and the router has no parameters. Use the "
                "model as it is (moe-adapt test, moe-adapt predict), take a router that learns, or choose "
                "per input with moe-adapt compose."
            )
        if not any(parameters.values()):
            raise UserError(
                f"nothing to train: {type(self).__name__} has no head, so it needs a tuner (for example "
                "--config routed_lora/dynmole); without one it can only be validated and tested."
            )
        optimizer = self.optimizer(parameter_groups(parameters, self.learning_rates, self.weight_decay))
        check_coverage(optimizer, self)
        if self.tuner is not None:
            self.tuner.follow(optimizer)
        if self.procedure is not None:
            self.procedure.attach(self, optimizer)
        if self.lr_scheduler is not None:
            scheduler = self.lr_scheduler(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor[0]},
            }
        return with_schedule(optimizer, self.schedule, self.warmup, self._steps_in_all)

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by role: ``router``, ``experts``, ``head``."""
        if self.tuner is None:
            return {"router": [], "experts": [], "head": [p for p in self.parameters() if p.requires_grad]}
        groups = self.tuner.parameter_groups()
        return {role: [p for _, p in groups[key]] for role, key in _ROLES.items()}

    # Checkpoints.

    @property
    def seed(self) -> int:
        """Seed of the run; a resumed run keeps that of the first."""
        if self._seed is None:
            self._seed = run_seed()
        return self._seed

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with: class, model settings and tuner, as JSON types."""
        tuner: dict[str, Any] = {} if self.tuner_config is None else _jsonable(self.tuner_config.to_dict())
        shaping = {key: value for key, value in tuner.items() if key not in _NOT_SHAPING}
        return {"class": type(self).__name__, **self.settings(), "tuner": shaping}

    def training_settings(self) -> dict[str, Any]:
        """Return what a resumed run must agree with beside `identity`, as JSON types."""
        procedure = {} if self.procedure is None else {"procedure": self.procedure.settings()}
        return {
            "lr": self.learning_rates,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule,
            "warmup": self.warmup,
            **procedure,
        }

    def _origin(self) -> checkpoints.Origin:
        if self._base_fingerprint is None:
            self._base_fingerprint = fingerprint(self)
        return checkpoints.Origin(
            self.identity(), self.training_settings(), self.name, self._base_fingerprint, self.seed
        )

    def on_save_checkpoint(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Keep the adapter, the head, what identifies them, and how new rows are put to the model."""
        checkpoints.fill(checkpoint, self, self._origin(), self.answering)

    def on_load_checkpoint(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Verify that the checkpoint belongs here.

        Raises:
            UserError: If it does not; the message says what differs.
        """
        resuming = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        checkpoints.verify(checkpoint, self, self._origin(), resuming)
        if resuming:
            record = checkpoint[checkpoints.KEY]
            self._seed, self._restored_rng = record["seed"], record["rng"]
        self._take_answering(checkpoint[checkpoints.KEY].get("answering") or {})

    @property
    def answering(self) -> dict[str, Any]:
        """How new rows are put to the model: what its data module says, or its checkpoint said."""
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        own = getattr(data, "answering", None)
        return self._answering if own is None else own()

    def _take_answering(self, stored: dict[str, Any]) -> None:
        self._answering = stored
        names, now = stored.get("class_names"), self.answering.get("class_names")
        if names is not None and now is not None and names != now:
            changed = next((pair for pair in zip(names, now, strict=False) if pair[0] != pair[1]), None)
            what = "other classes" if changed is None else f"{changed[1]!r} in the place of {changed[0]!r}"
            raise UserError(
                f"the checkpoint was trained on {len(names)} classes and the data name {len(now)}, with "
                f"{what}: set class_names to the names of the run, or correct the rows."
            )


_NOT_SHAPING = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
_ROLES = {"router": "router", "experts": "experts", "head": "other"}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value
