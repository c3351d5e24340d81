r"""LoRA-Mixer's specialisation balance loss: even load over the batch, and a say on each token's entropy.

$$L = c_{bal}\, E \sum_i p_i f_i + c_{ent}\, \frac{1}{\log E}\, \overline{H(p_t)}$$

The paper's equation *subtracts* the entropy, so that minimising it flattens routing; its text, appendix and
figures say that routing becomes peaked. So the coefficient is signed: positive sharpens (the stated intent),
negative flattens (the equation as printed). `f` is defined in three ways there:

* `"switch"`: the share of tokens whose most probable expert is `i`;
* `"topk_mass"`: the share of the probability mass in the first `k` ranks that falls on `i`;
* `"soft"`: the mean probability `p_i` itself, the only one with a gradient.

The factor `E` (not in the paper) gives the coefficient the same meaning for any number of experts. The
paper's coefficients are not known; ours are DynMoLE's, so that the two compare.

Reference: LoRA-Mixer, arXiv 2507.00029, equations 3 and 5 (the paper's "RSL", "SBL" in its first version).
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.entropy import tsallis_entropy
from moe_adapt.routing.records import RecordGroup

__all__ = ["SpecializationBalanceLoss"]


@AUX_LOSSES.register("specialization_balance")
class SpecializationBalanceLoss(AuxLoss):
    """Balance of the load plus a signed multiple of the router's entropy.

    Args:
        weight: Factor on the whole loss.
        balance_coef: Coefficient of the balance term. Higher: a more even load.
        entropy_coef: Coefficient of the normalised entropy; positive sharpens routing, negative flattens it.
            Higher: sharper routing.
        balance: What `f` is, see above.
        k: Ranks that `"topk_mass"` looks at.
        normalize: Whether the balance term has the factor `E`.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "LoRA-Mixer, arXiv 2507.00029"

    def __init__(
        self,
        weight: float = 1.0,
        balance_coef: float = 1e-3,
        entropy_coef: float = 1e-2,
        balance: Literal["switch", "topk_mass", "soft"] = "switch",
        k: int = 3,
        normalize: bool = True,
    ) -> None:
        super().__init__(weight)
        if balance not in ("switch", "topk_mass", "soft"):
            raise UserError(f"balance is 'switch', 'topk_mass' or 'soft', got {balance!r}.")
        if k < 1:
            raise UserError(f"topk_mass looks at one rank at least, got k={k}.")
        self.balance_coef, self.entropy_coef = balance_coef, entropy_coef
        self.balance, self.k, self.normalize = balance, k, normalize

    def _share(self, group: RecordGroup) -> Tensor:
        probs = group.probs
        if self.balance == "soft":
            return group.token_mean(probs)
        probs = probs.detach()
        if self.balance == "switch":
            first = F.one_hot(probs.argmax(dim=-1), group.num_experts)
            return group.token_mean(first.to(probs.dtype))
        best = probs.topk(min(self.k, group.num_experts), dim=-1)
        mass = group.token_mean(torch.zeros_like(probs).scatter(-1, best.indices, best.values))
        return mass / mass.sum(dim=-1, keepdim=True)

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean over sites."""
        parts = []
        for group in groups:
            factor = group.num_experts if self.normalize else 1
            balance = factor * (group.token_mean(group.probs) * self._share(group)).sum(dim=-1)
            entropy = group.token_mean(tsallis_entropy(group.probs, q=1))
            parts.append(self.balance_coef * balance + self.entropy_coef * entropy)
        return torch.cat(parts).mean()
