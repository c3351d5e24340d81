"""Uniform scorer: every expert gets the logit 0, for every token. The control that no router was needed."""

from torch import Tensor

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["UniformScorer"]


@SCORERS.register("uniform")
class UniformScorer(Scorer):
    """Scores without parameters; with the dense selector the gates are `1 / E`.

    Args:
        num_experts: Number of experts, `E`.
    """

    reference = "no paper: a control without a router"

    input_independent = True

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return zeros, [N, E]."""
        return x.new_zeros(x.shape[0], self.num_experts)
