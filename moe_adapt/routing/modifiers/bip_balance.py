r"""BIP balancing: choose experts by a balanced assignment of the whole batch, and leave the gates alone.

Balanced routing is a binary integer program: maximise the sum of chosen scores with `k` experts per token and
no more than `k n / E` tokens per expert. Its linear relaxation has a price `q_e` per expert and `p_i` per
token, found by `T` rounds of

$$p_i = \max\big(0,\ (k+1)\text{-th largest of } s_{i\cdot} - q\big), \qquad
  q_e = \max\big(0,\ (\lfloor k n / E \rfloor + 1)\text{-th largest of } s_{\cdot e} - p\big)$$

with `s` the router's probabilities. Tokens choose by `s - q`; gates come from the logits as they were. So a
batch is nearly balanced from the first step, without a loss that pulls at the router. The prices depend on
the whole batch: in evaluation, where a token must not depend on its neighbours, the mean prices of the last
optimizer step stand. A batch of a few hundred tokens is needed for them to mean anything.

The number of rounds is not given by what we know of the paper; 4 is ours.

Reference: Sun, "Binary-Integer-Programming Based Algorithm for Expert Load Balancing in Mixture-of-Experts
Models", 2025, arXiv 2502.15451.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["BipBalance", "prices"]


@torch.no_grad()
def prices(scores: Tensor, k: int, rounds: int) -> Tensor:
    """Return the price of each expert, [E].

    Args:
        scores: Probabilities of tokens that count, [n, E].
        k: Experts per token.
        rounds: Rounds of the dual updates; 0 leaves all prices at zero.

    >>> prices(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), k=1, rounds=1)
    tensor([0.6000, 0.0000])
    """
    tokens, experts = scores.shape
    q = scores.new_zeros(experts)
    capacity = k * tokens // experts
    if k >= experts or not 0 < capacity < tokens:
        return q
    for _ in range(rounds):
        p = (scores - q).topk(k + 1, dim=1).values[:, -1:].clamp(min=0)
        q = (scores - p).topk(capacity + 1, dim=0).values[-1].clamp(min=0)
    return q


@MODIFIERS.register("bip_balance")
class BipBalance(LogitModifier):
    """Ranks experts by probability less the price of a balanced assignment; gates stay as they are.

    Args:
        num_experts: Number of experts, `E`.
        k: Experts per token, as the selector keeps.
        rounds: Rounds of the dual updates. Higher: closer to even load, more time.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "BIP balancing, Sun 2025, arXiv 2502.15451"
    reads_input = False

    price: Tensor

    def __init__(self, num_experts: int, k: int = 2, rounds: int = 4) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise UserError(f"bip_balance chooses k of {num_experts} experts, from 1 to all, got k={k}.")
        if rounds < 0:
            raise UserError(f"bip_balance's rounds are 0 or more, got {rounds}.")
        self.k, self.rounds = k, rounds
        self.register_buffer("price", torch.zeros(num_experts))

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return what experts are ranked by, [N, E], beside unchanged weight logits."""
        probs = logits.select.softmax(dim=-1)
        price = self.price.to(probs)
        if ctx.training:
            price = self._of_batch(probs.detach(), ctx)
        return logits._replace(select=probs - price)

    def _of_batch(self, probs: Tensor, ctx: RouteContext) -> Tensor:
        mask = ctx.flat_mask(probs.shape[:-1])
        price = prices(probs if mask is None else probs[mask.to(probs.device)], self.k, self.rounds)
        ctx.accumulate("price", price)
        ctx.accumulate("batches", torch.ones_like(price[:1]))
        return price

    def after_step(self, sums: dict[str, Tensor]) -> None:
        """Keep the mean prices of the step's batches."""
        if "price" in sums:
            self.price.copy_(sums["price"].to(self.price) / sums["batches"].to(self.price))
