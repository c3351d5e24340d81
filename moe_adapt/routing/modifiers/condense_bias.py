r"""Condensing bias: rich experts get richer, then the poor ones are kept alive as condensers.

Once per optimizer step, with `u_e` the sum over the step's unpadded tokens (all micro-batches, all processes)
of the probability of expert `e`:

$$b_e \leftarrow b_e + \gamma\, \mathrm{sign}(u_e - \bar u)$$

The choice is made on `z + b`, the gates come from `z`. It is DeepSeek-V3's loss-free balancing with the sign
turned round. From a share of the steps on (`condense_from`), the `condensers` experts with the lowest bias
(ties: lower usage, then lower index) are forced on for every token, gated by their own probability (selector
`condenser`), so that the long tail is trained instead of starved; the bias goes on with `gamma_condensed`.

Departures and options: the released code puts the bias into the gates too (`in_weight`), and updates it in
the forward pass, which counts twice under accumulation and gradient checkpointing; here it moves after the
optimizer step (`tuner.follow(optimizer)`; our Lightning modules do it). Usage is counted on biased
probabilities, as there (`usage`). "Rare" experts are those with the lowest bias, which the appendix says;
the text of the paper is not clear.

Reference: "Preserving Long-Tailed Expert Information in Mixture-of-Experts Tuning", arXiv 2604.23036.
"""

from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import PoolEdit
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext, in_backward

__all__ = ["CondenseBias", "condense_step", "rarest"]


def condense_step(usage: Tensor, gamma: float) -> Tensor:
    """Return the change of the bias, [E].

    Args:
        usage: Summed probabilities, [E].
        gamma: Size of the step.

    >>> condense_step(torch.tensor([0.5, 0.3, 0.2]), 0.1)
    tensor([ 0.1000, -0.1000, -0.1000])
    """
    return gamma * torch.sign(usage - usage.mean())


def rarest(bias: Tensor, usage: Tensor, count: int) -> Tensor:
    """Return which experts have the lowest bias, bool [E]; ties go to lower usage, then to the lower index.

    >>> rarest(torch.tensor([0.2, -0.1, -0.1]), torch.tensor([9.0, 2.0, 1.0]), 1)
    tensor([False, False,  True])
    """
    by_usage = usage.sort(stable=True).indices
    order = by_usage[bias[by_usage].sort(stable=True).indices]
    return torch.zeros_like(bias, dtype=torch.bool).index_fill(0, order[:count], True)


@MODIFIERS.register("condense_bias")
class CondenseBias(LogitModifier):
    """Biases the choice of experts towards those that are used most.

    Args:
        num_experts: Number of experts, `E`.
        gamma: Step of the bias. Higher: popular experts pull ahead faster.
        condensers: How many experts become condensers; 0 for none. Higher: more experts that every token
            uses.
        condense_from: Share of the optimizer steps after which they are chosen.
        gamma_condensed: Step of the bias from then on.
        usage: Probabilities whose sum drives the bias: with or without it.
        in_weight: Whether the bias enters the gates as well.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "condenser experts, arXiv 2604.23036; loss-free balancing, Wang et al. 2024, arXiv 2408.15664"

    bias: Tensor
    used: Tensor
    chosen: Tensor

    reads_input = False

    def __init__(
        self,
        num_experts: int,
        gamma: float = 1e-3,
        condensers: int = 0,
        condense_from: float = 0.5,
        gamma_condensed: float = 5e-5,
        usage: Literal["biased", "unbiased"] = "biased",
        in_weight: bool = False,
    ) -> None:
        super().__init__()
        if gamma < 0 or gamma_condensed < 0:
            raise UserError(f"the steps of the bias are not negative, got {gamma} and {gamma_condensed}.")
        if not 0 <= condensers < max(num_experts, 2):
            raise UserError(
                f"of {num_experts} experts, 0 to {num_experts - 1} are condensers, not {condensers}."
            )
        if not 0 <= condense_from <= 1:
            raise UserError(f"condense_from is a share of the steps in [0, 1], got {condense_from}.")
        if usage not in ("biased", "unbiased"):
            raise UserError(f"usage is 'biased' or 'unbiased', got {usage!r}.")
        self.gamma, self.gamma_condensed = gamma, gamma_condensed
        self.condensers, self.condense_from = condensers, condense_from
        self.usage, self.in_weight = usage, in_weight
        self.register_buffer("bias", torch.zeros(num_experts))
        self.register_buffer("used", torch.zeros(num_experts))
        self.register_buffer("chosen", torch.zeros(num_experts, dtype=torch.bool))

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return biased logits, and the condensers once they are chosen."""
        bias = self.bias.to(logits.select.dtype)
        select = logits.select + bias
        weight = logits.weight + bias if self.in_weight else logits.weight
        if ctx.training and not in_backward():
            self._observe(select if self.usage == "biased" else logits.select, ctx)
        return Logits(select, weight, forced=self.chosen if self.condensers else None)

    @torch.no_grad()
    def _observe(self, logits: Tensor, ctx: RouteContext) -> None:
        probs, mask = logits.softmax(dim=-1), ctx.flat_mask(logits.shape[:-1])
        if mask is not None:
            probs = probs * mask.to(probs.device).unsqueeze(-1)
        ctx.accumulate("usage", probs.sum(dim=0))
        if not self.condensers or ctx.progress < self.condense_from:
            return
        if torch.compiler.is_compiling() or not self.chosen.any():
            fresh = rarest(self.bias, self.used, min(self.condensers, len(self.bias) - 1))
            self.chosen.copy_(torch.where(self.chosen.any(), self.chosen, fresh))

    def after_step(self, sums: dict[str, Tensor]) -> None:
        """Move the bias."""
        if "usage" not in sums:
            return
        usage = sums["usage"].to(self.bias)
        gamma = self.gamma_condensed if self.condensers and self.chosen.any() else self.gamma
        self.bias.add_(condense_step(usage, gamma))
        self.used.add_(usage)

    def edited(self, edit: PoolEdit) -> None:
        """Let copies and new experts be no condensers."""
        self.chosen[[*edit.copies, *edit.fresh]] = False
