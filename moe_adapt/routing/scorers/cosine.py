r"""Cosine scorer: the cosine between a token and a learned direction per expert, over a temperature.

$$z_e = \cos(P x, r_e) / \tau$$

`P` is the identity, or with `space` a learned projection to that many dimensions, in which experts share
their parameters: `space (d + E)` instead of `d E` numbers. With few experts that is more, not less, than a
linear scorer has (break-even near `E = space`), so it is off by default and a larger one warns.

Logits do not change with the length of a token, and cannot grow beyond `1 / tau`. The temperature starts at
0.07, as in X-MoE, and is learned unless `learn_temperature` is off.

Reference: Ternovtsii and Bilak, "Equifinality in Mixture of Experts", arXiv 2604.14419 (there `space` 64);
Chi et al., "On the Representation Collapse of Sparse Mixture of Experts", arXiv 2204.09179.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["CosineScorer"]


@SCORERS.register("cosine")
class CosineScorer(Scorer):
    """Trainable cosine router.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`.
        temperature: Start value of the temperature. Higher: gates closer to equal at first.
        learn_temperature: Whether the temperature is trained (its logarithm is the parameter).
        space: Dimensions that tokens are projected to; None compares in the input space. Higher: more router
            parameters.
        center: Whether to subtract a vector from the tokens first: the buffer `center` [d], zero until
            somebody (a learner) sets it to the tokens' mean.

    Raises:
        UserError: If `temperature` is not positive or `space` is less than one.
    """

    reference = "Chi et al. 2022, arXiv 2204.09179; Ternovtsii and Bilak 2026, arXiv 2604.14419"

    center: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        space: int | None = None,
        center: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"the cosine scorer's temperature must be positive, got {temperature}.")
        if space is not None and space < 1:
            raise UserError(f"the cosine scorer's space has at least one dimension, got {space}.")
        if space is not None and space * (in_features + num_experts) > in_features * num_experts:
            warnings.warn(
                f"a cosine scorer with space={space} has more parameters than without, for {num_experts} "
                f"experts on {in_features} inputs.",
                stacklevel=2,
            )
        self.register_buffer("center", torch.zeros(in_features) if center else None)
        start = torch.full((1,), math.log(temperature))
        self.temperature = temperature
        self.log_temperature = nn.Parameter(start) if learn_temperature else None
        self.projection = None if space is None else nn.Parameter(torch.empty(space, in_features))
        self.weight = nn.Parameter(torch.empty(num_experts, space or in_features))
        for matrix in (self.projection, self.weight):
            if matrix is not None:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return the scaled cosines, [N, E]; a token of zeros gets zeros."""
        if self.center is not None:
            x = x - self.center.to(x.dtype)
        if self.projection is not None:
            x = F.linear(x, self.projection.to(x.dtype))
        cosine = F.linear(F.normalize(x, dim=-1), F.normalize(self.weight.to(x.dtype), dim=-1))
        if self.log_temperature is None:
            return cosine / self.temperature
        return cosine * torch.exp(-self.log_temperature.to(x.dtype))
