"""What SAME keeps of one adapted layer: statistics of its inputs, and the transforms made of them."""

from typing import Literal

from torch import Tensor, nn

from moe_adapt.optim import (
    DownPreconditioner,
    ExpertDownPreconditioner,
    ExpertUsage,
    FreezeExperts,
    InputMoment,
    RouterUpdate,
    RowSample,
    UpdateTransform,
    UpPreconditioner,
)
from moe_adapt.tuner.layer import RoutedLoraLayer

__all__ = ["ADAPTER", "Precondition", "SiteState"]

ADAPTER = "default"
#: What of the experts is preconditioned.
Precondition = Literal["none", "down", "down_per_expert", "both"]


class SiteState(nn.Module):
    """Statistics and transforms of one adapted layer.

    Args:
        layer: The layer.
        rule: The router rule.
        precondition: What of the experts is preconditioned.
        c: Regulariser of the preconditioner in units of the mean eigenvalue.
        mu: Absolute regulariser instead.
        max_exact: Widest layer whose moment is kept whole.
        share: Share of tokens that statistics are made of after a task's first ones.
        energy: Share of old energy whose leading directions are preconditioned; None for all directions.
    """

    def __init__(
        self,
        layer: RoutedLoraLayer,
        rule: RouterUpdate,
        precondition: Precondition,
        c: float,
        mu: float | None,
        max_exact: int,
        share: float,
        energy: float | None = None,
    ) -> None:
        super().__init__()
        experts = layer.specs[ADAPTER].num_experts
        self.moment = InputMoment(layer.in_features, max_exact)
        own = experts if precondition == "down_per_expert" else 0
        self.expert_moments = nn.ModuleList(InputMoment(layer.in_features, max_exact) for _ in range(own))
        self.usage = ExpertUsage(experts)
        self.sample = RowSample(layer.in_features, share)
        self.rule = rule
        self.down = DownPreconditioner(c, mu, energy) if precondition in ("down", "both") else None
        self.down_per_expert = ExpertDownPreconditioner(c, mu, energy) if own else None
        self.up = UpPreconditioner(c) if precondition == "both" else None
        self.freeze = (FreezeExperts(dim=0), FreezeExperts(dim=1))

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return what a rule keeps beside the moments."""
        return self.rule.state()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore it."""
        self.rule.load_state(state)

    def begin_task(self, layer: RoutedLoraLayer, task: int) -> None:
        """Make filters of the finished tasks, and thaw every expert."""
        self.sample.begin_task()
        for freeze in self.freeze:
            freeze.mask = None
        self.rule.prepare(self.moment, task)
        if self.down is not None:
            self.down.prepare(self.moment)
        if self.down_per_expert is not None:
            self.down_per_expert.prepare(self.moments()[1:])
        if self.up is not None:
            self.up.prepare(self.moment, layer.bank(ADAPTER).a, self.usage.mean_gate_sq)

    def moments(self) -> list[InputMoment]:
        """Return the moment of the layer's inputs, and those of the experts if they have their own."""
        return [self.moment, *self.expert_moments]

    def observe(self, rows: Tensor, gates: Tensor | None) -> None:
        """Take inputs [N, d] of the task under way, and how they were routed, [N, E]."""
        positions, weight = self.sample.chosen(len(rows))
        if positions is not None:
            if len(positions) == 0:
                return
            positions = positions.to(rows.device)
            rows, gates = rows[positions], None if gates is None else gates[positions]
        self.moment.observe(rows, weight)
        if gates is not None:
            self.usage.observe(gates, rows, weight)
            for moment, gate in zip(self.moments()[1:], gates.float().t(), strict=False):
                moment.observe(rows, weight * gate)

    def end_task(self) -> None:
        """Let the task join the finished ones."""
        with self.moment.summed():
            self.rule.finish(self.moment)
        for moment in self.moments():
            moment.end_task()
        self.usage.end_task()

    def transforms(self) -> dict[str, list[UpdateTransform]]:
        """Return the transforms of the router's rows, `A` and `B`."""
        return {
            "router": [self.rule],
            "A": [t for t in (self.down, self.down_per_expert, self.freeze[0]) if t is not None],
            "B": [t for t in (self.up, self.freeze[1]) if t is not None],
        }
