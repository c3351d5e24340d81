r"""Pre-gate: one small network on the token ids decides for all layers, before the first of them (Read-ME).

A causal transformer of two layers reads the token ids of a text and gives each token one row of logits, which
every adapted layer uses. So the experts of a batch are known before the model runs: they can be fetched, and
requests that use the same ones put together (`moe_adapt.tuner.early.early_experts`). The network exists once,
whatever the number of layers.

Its inputs are the first columns of the model's own token embeddings, which stay frozen and are not stored
again. It has no positions but a causal mask, so that padding on the left changes nothing. A key-value cache
hides the start of a text from it: generate with ``use_cache=False``.

Departures: the paper splits dense layers into experts and trains router and model in turns; ours trains the
network with the experts, through the gate of the chosen one, and leaves the rest of the model alone.

Reference: Cai et al., "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System
Co-Design", arXiv 2410.19123.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["PreGateScorer"]


class _Block(nn.Module):
    """A causal transformer block without positions.

    Args:
        width: Width of its tokens.
        heads: Number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, visible: Tensor) -> Tensor:
        """Return the new tokens [B, S, w], given which tokens each may look at, bool [B, 1, S, S]."""
        rows, length, width = h.shape
        split = self.qkv(self.norm(h)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        h = h + self.out(seen.transpose(1, 2).reshape(rows, length, width))
        return h + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(h))))


class _Gate(nn.Module):
    """The network from embedded tokens to logits."""

    def __init__(self, width: int, layers: int, heads: int, num_experts: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(layers)])
        self.head = nn.Linear(width, num_experts, bias=False)
        self.start, self.end = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        length = embedded.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=embedded.device).tril()
        visible = visible.view(1, 1, length, length)
        if mask is not None:
            own = torch.eye(length, dtype=torch.bool, device=embedded.device)
            visible = visible & mask.to(embedded.device)[:, None, None, :] | own
        h = self.start(embedded)
        for block in self.blocks:
            h = block(h, visible)
        return self.head(self.end(h))


@SCORERS.register("pre_gate")
class PreGateScorer(Scorer):
    """Scores tokens by their ids and those before them, once for all layers.

    Args:
        num_experts: Number of experts, `E`; the same at every layer.
        width: How many columns of the token embeddings it reads. Higher: a larger network.
        layers: Its layers.
        heads: Its attention heads; they divide the width.

    Raises:
        UserError: If the heads do not divide the width, or a number is less than one.
    """

    reference = "Read-ME, Cai et al. 2024, arXiv 2410.19123"

    common = ("gate",)

    def __init__(self, num_experts: int, width: int = 32, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        if min(width, layers, heads) < 1 or width % heads:
            raise UserError(
                f"pre_gate needs a width that its heads divide, and at least one layer; got width={width}, "
                f"layers={layers}, heads={heads}."
            )
        self.width = width
        self.gate = _Gate(width, layers, heads, num_experts)

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return the logits of the network, [N, E].

        Raises:
            UserError: If the tokens have no ids, or the model has no token embeddings.
        """
        ctx.flat_input_ids(x.shape[:-1])  # one vector per token id, or an error
        logits = ctx.once("pre_gate", lambda: self._logits(ctx))
        return logits.to(x.device).flatten(0, 1)

    def _logits(self, ctx: RouteContext) -> Tensor:
        ids, mask = ctx.sequences()
        table = None if ctx.embeddings is None else ctx.embeddings()
        if table is None:
            raise UserError(
                "the pre-gate reads the model's token embeddings, but the model has none; take another "
                "scorer, such as 'linear'."
            )
        weight = self.gate.head.weight
        with torch.no_grad():
            embedded = table(ids.to(table.weight.device))[..., : self.width].detach()
        if embedded.shape[-1] < self.width:
            raise UserError(
                f"the pre-gate reads {self.width} columns of the token embeddings, which have "
                f"{embedded.shape[-1]}; lower its width."
            )
        return self.gate(embedded.to(weight.device, weight.dtype), mask)
