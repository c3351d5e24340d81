r"""Transforms of the final update: what the optimizer did to a parameter, corrected afterwards.

Projecting a *gradient* protects nothing under Adam, whose element-wise scaling rotates it out of the
subspace, nor against momentum or weight decay. So a transform sees

$$\Delta = \theta_{\text{after}} - \theta_{\text{before}}$$

of a whole optimizer step (fused and foreach variants, decoupled weight decay and loss scaling included) and
returns what should be added instead. Under plain SGD this is the projection of the gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_adapt.optim.moment import InputMoment
from moe_adapt.registry import Registry

__all__ = ["ROUTER_UPDATES", "RouterUpdate", "UpdateHook", "UpdateTransform"]


class UpdateTransform(ABC):
    """Corrects the update of one parameter."""

    def before_step(self, parameter: nn.Parameter) -> None:  # noqa: B027
        """Look at, or change, the gradient of `parameter` before the optimizer runs."""

    @abstractmethod
    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the update to make instead of `delta`; `before` is the parameter's value before the step."""


class RouterUpdate(UpdateTransform):
    """A rule for the rows of a router [E, d], made from the second moment of its inputs."""

    def prepare(self, moment: InputMoment, task: int) -> None:
        """Read the statistics at the beginning of task number `task`, from 0."""

    def refresh(self, moment: InputMoment) -> None:
        """Read the running statistics, every few steps."""

    def finish(self, moment: InputMoment) -> None:
        """Read the statistics of the task that ends, before they join those of finished tasks."""

    def state(self) -> dict[str, Tensor]:
        """Return what cannot be made again from the moments, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the update as it is; subclasses change it."""
        return delta


class UpdateHook:
    """Runs transforms around every step of an optimizer.

    Args:
        transforms: The transforms of each parameter, in order, by a name for the report.

    Attributes:
        kept: Norm of the corrected over that of the raw update, by name, of the last step.
    """

    def __init__(self, transforms: Mapping[str, tuple[nn.Parameter, Sequence[UpdateTransform]]]) -> None:
        self.transforms = dict(transforms)
        self.kept: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> tuple[RemovableHandle, RemovableHandle]:
        """Register with an optimizer; the handles undo that."""
        return (
            optimizer.register_step_pre_hook(lambda *_: self.before_step()),
            optimizer.register_step_post_hook(lambda *_: self.after_step()),
        )

    @torch.no_grad()
    def before_step(self, *_: Any) -> None:
        """Note the values that the optimizer is about to change."""
        for name, (parameter, transforms) in self.transforms.items():
            self._before[name] = parameter.detach().clone()
            for transform in transforms:
                transform.before_step(parameter)

    @torch.no_grad()
    def after_step(self, *_: Any) -> None:
        """Replace the optimizer's updates by the corrected ones."""
        for name, (parameter, transforms) in self.transforms.items():
            before = self._before.pop(name)
            raw = parameter - before
            delta = raw
            for transform in transforms:
                delta = transform.after_step(delta, before)
            if delta is not raw:
                parameter.copy_(before + delta)
            self.kept[name] = delta.norm() / raw.norm().clamp(min=torch.finfo(raw.dtype).tiny)


ROUTER_UPDATES: Registry[RouterUpdate] = Registry("router update")
