"""Optimisers and learning-rate schedules for adapters: parameter groups by role, warm-up, decay.

The groups are ``router``, ``experts`` and ``head``. Routers and experts have no weight decay: decay on the
two factors of a LoRA is not invariant under their gauge (B M, M^-1 A), and on a router it is a pull towards
uniform routing that belongs to the auxiliary losses.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from moe_adapt.errors import UserError

__all__ = [
    "Schedule",
    "check_coverage",
    "learning_rate_factor",
    "momentum_sgd",
    "parameter_groups",
    "with_schedule",
]

#: How the learning rate goes on after the warm-up.
Schedule = Literal["constant", "cosine", "linear"]


def momentum_sgd(params: Any) -> torch.optim.Optimizer:
    """Return SGD with momentum 0.9 over groups that carry their own learning rate and weight decay."""
    return torch.optim.SGD(params, momentum=0.9)


def parameter_groups(
    parameters: Mapping[str, Iterable[nn.Parameter]], lr: Mapping[str, float], head_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return named optimiser groups; empty ones are left out.

    Args:
        parameters: Trainable parameters by role (``router``, ``experts``, ``head``; ``backbone`` if trained
            whole).
        lr: Learning rate by role.
        head_weight_decay: Weight decay of head and backbone; routers and experts have none.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> [g] = parameter_groups({"router": [], "head": [weight]}, {"router": 1e-3, "head": 1e-2}, 0.1)
    >>> g["name"], g["lr"], g["weight_decay"]
    ('head', 0.01, 0.1)
    """
    groups = []
    for role, members in parameters.items():
        params = list(members)
        if params:
            decay = head_weight_decay if role in ("head", "backbone") else 0.0
            groups.append({"name": role, "params": params, "lr": lr[role], "weight_decay": decay})
    return groups


def check_coverage(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Check that `optimizer` holds every trainable parameter of `module`.

    Raises:
        UserError: If one is missing (it would silently never train); the message names up to five.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    if lost:
        raise UserError(
            f"the optimiser {type(optimizer).__name__} does not hold {len(lost)} trainable parameters "
            f"({', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}); pass it every group it is given."
        )


def learning_rate_factor(step: int, total: int, warmup: int, schedule: Schedule, end: float = 0.0) -> float:
    """Return the factor on the learning rate at optimiser step `step`.

    It grows linearly over `warmup` steps, then stays 1 (``constant``), falls along half a cosine to 0
    (``cosine``) or along a line to 0 (``linear``) at `total` steps; to `end` instead of 0, if it is given.

    >>> [round(learning_rate_factor(s, 10, 2, "linear"), 3) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    left = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return end + (1.0 - end) * left


def with_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    warmup: float,
    total_steps: Callable[[], float],
    end: float = 0.0,
) -> Any:
    """Return what ``configure_optimizers`` returns: the optimiser, and its schedule if there is one.

    Args:
        optimizer: The optimiser.
        schedule: How the learning rate goes on after the warm-up, step by step.
        warmup: Fraction of all steps over which the learning rate grows linearly.
        total_steps: Says how many steps there will be; asked only if there is a schedule.
        end: What is left of the learning rate at the end of a falling schedule.

    Raises:
        UserError: If there is a schedule and the number of steps is unknown.
    """
    if schedule == "constant" and not warmup:
        return optimizer
    total = total_steps()
    if total == float("inf"):
        raise UserError(
            "a schedule or warm-up needs a known length; set trainer.max_steps or trainer.max_epochs."
        )
    steps, rising = int(total), round(warmup * total)
    factor = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, rising, schedule, end)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}
