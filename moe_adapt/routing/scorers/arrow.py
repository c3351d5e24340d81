r"""Arrow scorer: how strongly a token lies in the direction that an expert changes most; nothing is trained.

The prototype of expert `e` is the top right singular vector `v_e` of its change of weight `B_e A_e`, up to
its sign:

$$z_e = |v_e^\top x| / \tau$$

The way to route experts that were trained apart (`experts_from`). The vector is found without forming
`B_e A_e`: with the Gram matrices `G = B^T B` and `K = A A^T` [r, r] and `u` the top eigenvector of `G K`,
`v` is `A^T u`, normalised. An expert whose `B` is zero scores zero.

Reference: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs", arXiv
2405.11157. PEFT has its own (`create_arrow_model`): three experts per token, temperature 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["ArrowScorer", "top_right_singular_vectors"]


@torch.no_grad()
def top_right_singular_vectors(a: Tensor, b: Tensor) -> Tensor:
    """Return the top right singular vector of each expert's `B_e A_e`, [E, d]; zero for a zero matrix.

    Args:
        a: Down-projections, [E, r, d].
        b: Up-projections, [o, E, r].
    """
    a, up = a.double(), b.double().transpose(0, 1)
    values, vectors = torch.linalg.eigh(a @ a.transpose(-1, -2))
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    core = root.transpose(-1, -2) @ (up.transpose(-1, -2) @ up) @ root
    top = torch.linalg.eigh(core)
    inverse = torch.where(values > values.amax(dim=-1, keepdim=True) * 1e-12, values, torch.inf).rsqrt()
    direction = (vectors * inverse.unsqueeze(-2)) @ top.eigenvectors[..., -1:]
    found = F.normalize((a.transpose(-1, -2) @ direction).squeeze(-1), dim=-1)
    return found * (top.eigenvalues[..., -1:] > 0)


@SCORERS.register("arrow")
class ArrowScorer(Scorer):
    """Scores tokens by the experts' leading directions, without parameters.

    Args:
        temperature: Divides the scores. Higher: gates closer to equal.

    Raises:
        UserError: If `temperature` is not positive.
    """

    reference = "Ostapenko et al. 2024, arXiv 2405.11157"

    from_bank = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"the arrow scorer's temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return the scores, [N, E]."""
        stored = [bank.position(expert) for expert in range(bank.num_experts)]
        prototypes = top_right_singular_vectors(bank.a.expand(bank.num_experts, -1, -1), bank.b)[stored]
        return F.linear(x, prototypes.to(x.dtype)).abs() / self.temperature
