r"""Adaptive freezing: which experts a task should leave alone.

Per expert `i`, `U(i)` is its mean gate on the task under way and `F_pre(i)` the mean of `w_i(x) ||x||^2` over
*earlier* tasks. Both are scaled to [0, 1] over the layer's experts (min-max), and

$$\mathrm{Score}(i) = \tilde U(i) - \tilde F_{pre}(i) < \tau$$

freezes expert `i` for this task.

Without history nothing is frozen. Min-max puts the least-used expert at 0, so with flat `F_pre` and `tau >
0` that one is always frozen: a property of the published score. The released code takes both averages over
the same batches, which freezes nearly everything and forces the expert with the task's index on; here
`F_pre` is of earlier tasks only and no index is forced.

A frozen expert keeps its place in the mixture. It is restored after every step, bit for bit, whatever
momentum and weight decay did to it.

Reference:
    SAME, arXiv 2602.01990.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_adapt.optim.base import UpdateTransform
from moe_adapt.processes import process, sum_over_processes

__all__ = ["ExpertUsage", "FreezeExperts", "frozen_experts", "min_max"]


def min_max(values: Tensor) -> Tensor:
    """Return values [E] scaled to [0, 1]; equal ones become 0.

    >>> min_max(torch.tensor([1.0, 3.0, 2.0]))
    tensor([0.0000, 1.0000, 0.5000])
    """
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def frozen_experts(usage: Tensor, past: Tensor, tau: float, has_past: bool = True) -> Tensor:
    """Return which experts to freeze, bool [E].

    Args:
        usage: Mean gate on the current task, `U` [E].
        past: Importance on earlier tasks, `F_pre` [E].
        tau: Threshold of the score.
        has_past: Whether there were earlier tasks.

    >>> frozen_experts(torch.tensor([0.1, 0.6]), torch.tensor([5.0, 1.0]), tau=0.1).tolist()
    [True, False]
    """
    if not has_past:
        return torch.zeros_like(usage, dtype=torch.bool)
    return min_max(usage) - min_max(past) < tau


class ExpertUsage(nn.Module):
    """Sums of gates over the tokens of the current and of the finished tasks, per expert.

    Args:
        num_experts: Number of experts, `E`.
    """

    gate: Tensor
    gate_sq: Tensor
    weighted: Tensor
    tokens: Tensor
    past_gate_sq: Tensor
    past_weighted: Tensor
    past_tokens: Tensor

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        for name in ("gate", "gate_sq", "weighted", "past_gate_sq", "past_weighted"):
            self.register_buffer(name, torch.zeros(num_experts, dtype=torch.float64))
        for name in ("tokens", "past_tokens"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def observe(self, gates: Tensor, rows: Tensor, weight: float = 1.0) -> None:
        """Add tokens: their gates [N, E] and inputs [N, d], padding left out; each counts `weight` times."""
        gates = weight * gates.double()
        self.gate += gates.sum(0)
        self.gate_sq += gates.square().sum(0) / weight
        self.weighted += gates.t() @ rows.float().square().sum(-1).double()
        self.tokens += weight * len(gates)

    def end_task(self) -> None:
        """Make the task under way a finished one."""
        sum_over_processes(*self._sums())
        self.past_gate_sq += self.gate_sq
        self.past_weighted += self.weighted
        self.past_tokens += self.tokens
        for value in self._sums():
            value.zero_()

    @contextmanager
    def summed(self) -> Iterator[None]:
        """Hold the sums of all processes while the block reads them; the first one keeps them afterwards."""
        sum_over_processes(*self._sums())
        try:
            yield
        finally:
            if process():
                for value in self._sums():
                    value.zero_()

    def _sums(self) -> tuple[Tensor, ...]:
        return self.gate, self.gate_sq, self.weighted, self.tokens

    @property
    def current(self) -> Tensor:
        """Mean gate on the current task, `U` [E]."""
        return self.gate / self.tokens.clamp(min=1)

    @property
    def importance(self) -> Tensor:
        """Importance on finished tasks, `F_pre` [E]."""
        return self.past_weighted / self.past_tokens.clamp(min=1)

    @property
    def mean_gate_sq(self) -> Tensor:
        """Mean squared gate on finished tasks, [E]."""
        return self.past_gate_sq / self.past_tokens.clamp(min=1)

    def frozen(self, tau: float) -> Tensor:
        """Return which experts to freeze now, bool [E]."""
        return frozen_experts(self.current, self.importance, tau, has_past=bool(self.past_tokens > 0))


class FreezeExperts(UpdateTransform):
    """Restores the slices of frozen experts after every step.

    Args:
        dim: Dimension of the parameter that counts experts.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.mask: Tensor | None = None

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the update with zeros for frozen experts."""
        if self.mask is None or not bool(self.mask.any()):
            return delta
        shape = [1] * delta.ndim
        shape[self.dim] = -1
        return delta.masked_fill(self.mask.to(delta.device).view(shape), 0.0)
