r"""Routing inside the model over adapters that nobody trained together: a gate vector per adapter and layer.

The vectors of all adapters (`moe_adapt.hub.gates.train_gate`) become the rows of a
`moe_adapt.routing.PhatgooseScorer`. Adding an adapter needs its own examples only and changes no other's
logits.

Glider adds what speaks for an adapter in the sample as a whole, here the pool's own cosines
(`AdapterPool.route`): `gated_model(..., scale=3)`, and `with sample_scores(model, plan.scores)` around the
forwards. Its scores compare written descriptions of tasks; a description can be an adapter's example.

Reference: Muqeeth et al., "Learning to Route Among Specialized Experts for Zero-Shot Generalization",
arXiv 2402.05859; Li et al., Glider, arXiv 2410.07172.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.hub.gates import gate_rows, gated_config, train_gate
from moe_adapt.hub.pool.store import AdapterPool
from moe_adapt.tuner.model import adapted_layers

__all__ = ["gated_model", "sample_scores", "train_gate"]


def gated_model(base: nn.Module, pool: AdapterPool, k: int = 2, scale: float = 0.0) -> peft.PeftModel:
    """Put all adapters of a pool on a base model, routed token by token with their gates.

    Args:
        base: The base model.
        pool: A pool whose members have gates.
        k: Adapters per token.
        scale: Factor on the scores of whole samples (`sample_scores`); 0 routes by gates alone.

    Raises:
        UserError: If a member has no gates, or an adapter cannot be used.
    """
    lacking = [uid for uid, member in pool.members.items() if not member.gates]
    if lacking or not pool.members:
        raise UserError(
            f"these adapters have no gates: {', '.join(lacking) or 'the pool is empty'}; train them."
        )
    sources = {uid: member.source for uid, member in pool.members.items()}
    smallest = min(k, len(sources))
    config = gated_config(sources, scorer="phatgoose", selector={"name": "top_k", "k": smallest})
    if scale:
        config.modifiers = [{"name": "sample_score", "scale": scale}]
    model = peft.get_peft_model(base, config)
    order = {uid: column for column, uid in enumerate(sources)}
    with torch.no_grad():
        for layer in adapted_layers(model):
            if scale:
                columns = layer.routers["default"].tensors(layer)["modifiers.0.columns"]
                columns.copy_(torch.tensor([order[uid] for uid in layer.specs["default"].names]))
            gates = [pool.members[uid].gates.get(layer.site) for uid in layer.specs["default"].names]
            for row, gate in zip(gate_rows(layer), gates, strict=True):
                if gate is None:
                    raise UserError(f"an adapter of the pool has no gate for {layer.site}; train it again.")
                row.copy_(gate)
    return model.eval()


@contextmanager
def sample_scores(model: peft.PeftModel, scores: Tensor) -> Iterator[None]:
    """Give a gated model the scores of whole samples for all forwards inside the block.

    Args:
        model: What `gated_model` returned with a scale.
        scores: Score of every adapter for each sample, [B, A], in the order of the pool, as in `Plan.scores`.
    """
    tuner: Any = model.base_model
    session = tuner.hooks.session
    session.sample_scores = scores
    try:
        yield
    finally:
        session.sample_scores = None
