r"""K-means scorer: the cosine between a token and the running mean of the tokens that came to an expert.

A router row and its expert's `A` both learn along the tokens that were routed there, so a router can do with
their mean and no trained parameter:

$$z_e = \cos(c_e, x) / \tau$$

* *Start from data.* An expert without a mean takes the place of a token that is far from all means (k-means++
  seeding). Such experts score as the opposite of every token until a batch has enough distinct tokens.
  Random starting points leave experts unused.
* *Update*, once per optimizer step (`tuner.after_step`, `tuner.follow`), over the tokens of all its
  micro-batches and processes. Each unpadded token is assigned to its nearest mean, whatever the selector
  picks. `c_e` moves towards the mean of its unit tokens by `n / (count + n)`, the exact running mean, but at
  least by `1 - decay`.

Statistics are buffers, saved with the adapter; evaluation and the recomputation of gradient checkpointing
leave them alone. The starting tokens are those of the first forward, under distributed training each
process's own unless buffers are broadcast (as DDP does by default).

The paper's rate and initialisation were not available to us; those here are ours.

Reference: Ahrac, Hochwald and Geva, "Routers Learn the Geometry of Their Experts", arXiv 2605.12476.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext, in_backward

__all__ = ["KMeansScorer"]

#: Two directions closer than this, as one minus their cosine, are the same token.
_SAME = 1e-4


@SCORERS.register("k_means")
class KMeansScorer(Scorer):
    """Router of running means, without trainable parameters.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`.
        temperature: Divides the cosines. Higher: gates closer to equal.
        decay: How much of a mean a batch leaves at least, in [0, 1). Higher: means that follow new data more
            slowly.
        seed: Seed of the choice of starting tokens.

    Raises:
        UserError: If `temperature` or `decay` is out of range.
    """

    reference = "Ahrac, Hochwald and Geva 2026, arXiv 2605.12476"

    means: Tensor
    counts: Tensor

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        temperature: float = 0.07,
        decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"the k_means scorer's temperature must be positive, got {temperature}.")
        if not 0 <= decay < 1:
            raise UserError(f"the k_means scorer's decay is in [0, 1), got {decay}.")
        self.temperature = temperature
        self.decay = decay
        self.seed = seed
        self.register_buffer("means", torch.zeros(num_experts, in_features))
        self.register_buffer("counts", torch.zeros(num_experts))

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return the scaled cosines with the means before this batch, [N, E]."""
        unit = F.normalize(x, dim=-1)
        means, known = ctx.keep(lambda: self._learn(unit.detach(), ctx), name="k_means").split(
            [unit.shape[-1], 1], dim=-1
        )
        cosine = F.linear(unit, means).masked_fill(known.squeeze(-1) == 0, -1)
        return cosine / self.temperature

    @torch.no_grad()
    def _learn(self, unit: Tensor, ctx: RouteContext) -> Tensor:
        """Return unit means and whether they exist, [E, d + 1], for this forward; note its tokens."""
        learning = ctx.training and not in_backward()
        mask = ctx.flat_mask(unit.shape[:-1])
        tokens = (unit if mask is None else unit[mask.to(unit.device)]).to(self.means.dtype)
        if learning and len(tokens) > 0:
            self._seed_empty(tokens)
        known = self.means.any(dim=-1, keepdim=True)
        means = F.normalize(self.means, dim=-1)
        if learning:
            self._note(tokens, means, known.squeeze(-1), ctx)
        return torch.cat([means, known], dim=-1).to(unit.dtype)

    def _seed_empty(self, tokens: Tensor) -> None:
        empty = (~self.means.any(dim=-1)).nonzero().flatten().tolist()
        if not empty:
            return
        generator = torch.Generator(tokens.device).manual_seed(self.seed)
        known = F.normalize(self.means[self.means.any(dim=-1)], dim=-1)
        for expert in empty:
            near = (tokens @ known.t()).amax(dim=-1) if len(known) else torch.zeros_like(tokens[:, 0])
            distance = torch.where(tokens.any(dim=-1) & (near < 1 - _SAME), 1 - near, 0)
            if not distance.any():
                return
            chosen = torch.multinomial(distance, 1, generator=generator)
            self.means[expert] = tokens[chosen[0]]
            known = torch.cat([known, tokens[chosen]])

    def _note(self, tokens: Tensor, means: Tensor, known: Tensor, ctx: RouteContext) -> None:
        nearest = F.linear(tokens, means).masked_fill(~known, float("-inf")).argmax(dim=-1)
        assigned = F.one_hot(nearest, len(means)).to(tokens.dtype) * known
        ctx.accumulate("k_means", torch.cat([assigned.t() @ tokens, assigned.sum(dim=0)[:, None]], dim=-1))

    def after_step(self, sums: dict[str, Tensor]) -> None:
        """Move the means towards the tokens of the step."""
        if "k_means" not in sums:
            return
        total, count = sums["k_means"].to(self.means).split([self.means.shape[-1], 1], dim=-1)
        count = count.squeeze(-1)
        target = total / count.clamp(min=1).unsqueeze(-1)
        rate = (count / (self.counts + count).clamp(min=1)).clamp(1 - self.decay, 1) * (count > 0)
        self.means.add_(rate.unsqueeze(-1) * (target - self.means))
        self.counts.add_(count)
