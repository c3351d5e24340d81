"""Training steps of more than one pass: what `training_step` calls instead of `task_loss`.

A procedure is an object among the arguments of a Lightning module (`--model.procedure NAME`). Its `step` gets
the module and a batch and returns a loss that Lightning differentiates. One that needs several optimizer
steps per batch sets `steps_per_batch`, takes them with `update`, and returns nothing.

Losses on routers' decisions enter a pass through ``tuner.aux_loss(more={...})``, which reaches routers under
both kinds of gradient checkpointing. Several passes may stand in one loss: what checkpointing runs again
belongs to the pass whose output is being differentiated (`moe_adapt.routing.session`).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.registry import Registry
from moe_adapt.signatures import as_json, constructor_arguments

if TYPE_CHECKING:
    from moe_adapt.routing import AuxLoss
    from moe_adapt.training.modules.base import AdaptedModule, Batch

__all__ = ["PROCEDURES", "ROLES", "Procedure", "aux_loss", "update"]

PROCEDURES: "Registry[Procedure]" = Registry("procedure")
ROLES = ("router", "experts", "head")


class Procedure(ABC):
    """One way to make an optimizer step, or several, of a batch.

    Constructor arguments are stored under their own names, as JSON types: a resumed run compares them.
    """

    #: Optimizer steps that `step` takes by itself; None if Lightning takes one with the loss it returns.
    steps_per_batch: int | None = None

    def check(self, module: "AdaptedModule") -> None:  # noqa: B027
        """Raise `UserError` if the procedure cannot train this module; called when training begins."""

    def attach(self, module: "AdaptedModule", optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """Hang what has to happen around optimizer steps on a new optimizer."""

    @abstractmethod
    def step(self, module: "AdaptedModule", batch: "Batch") -> Tensor | None:
        """Return the loss of a batch, a scalar; None if the optimizer has been stepped already."""

    def settings(self) -> dict[str, Any]:
        """Return the name and the constructor's arguments, from which `PROCEDURES.build` makes it again."""
        arguments = {name: getattr(self, name) for name in constructor_arguments(type(self))}
        return {"name": getattr(self, "registered_name", type(self).__name__), **as_json(arguments)}


def aux_loss(
    module: "AdaptedModule", more: "Mapping[str, AuxLoss] | None" = None, configured: bool = True
) -> Tensor | float:
    """Return the auxiliary losses of the module's last forward; 0 without an adapter.

    Args:
        module: The module.
        more: Losses on its decisions beside the configured ones, by name.
        configured: Whether the configured ones count.
    """
    return 0.0 if module.tuner is None else module.tuner.aux_loss(more, configured)


def update(module: "AdaptedModule", loss: Tensor, roles: Collection[str] = ROLES) -> None:
    """Differentiate a loss and step the optimizer and its schedule, for some parameters only.

    The gradient is clipped as ``trainer.gradient_clip_val`` says.

    Args:
        module: The module.
        loss: The loss, a scalar.
        roles: Which parameters move, of `ROLES`; the others keep their values and optimizer state.

    Raises:
        UserError: If the loss is not finite; nothing has been updated then.
    """
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is not finite at step {module.global_step}; the step was not taken. Lower the "
            "learning rate or look at the batch."
        )
    optimizer: Any = module.optimizers()
    optimizer.zero_grad()
    module.manual_backward(loss)
    for role, parameters in module.trainable_parameters().items():
        for parameter in [] if role in roles else parameters:
            parameter.grad = None
    if module.clipping is not None:
        module.clip_gradients(optimizer, *module.clipping)
    optimizer.step()
    torch.clear_autocast_cache()  # the step runs inside one autocast region, which keeps casts of weights
    optimizer.zero_grad()
    schedule: Any = module.lr_schedulers()
    if schedule is not None:
        schedule.step()
