"""Experts that are known before the model runs: what a pre-gate decides from token ids alone.

Whoever serves an adapter whose scorer is ``pre_gate`` can ask which experts a batch will use, fetch them, and
put requests with the same experts together.

Reference: Cai et al., "Read-ME", arXiv 2410.19123.
"""

from functools import partial

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.routing import RouteContext
from moe_adapt.routing.embeddings import token_embeddings
from moe_adapt.routing.scorers.pre_gate import PreGateScorer
from moe_adapt.tuner.layer import adapted_layers

__all__ = ["early_experts"]


@torch.no_grad()
def early_experts(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, adapter: str = "default"
) -> Tensor:
    """Return which experts each token will use at every layer, bool [B, S, E], without running the model.

    Args:
        model: A model with the adapter.
        input_ids: Token ids, [B, S].
        attention_mask: True for real tokens, [B, S]; None if all are.
        adapter: Name of the adapter.

    Raises:
        UserError: If the adapter has no pre-gate.
    """
    layers = [layer for layer in adapted_layers(model) if adapter in layer.specs]
    if not layers or not isinstance(layers[0].routers[adapter].skeleton.scorer, PreGateScorer):
        raise UserError(
            f"the adapter {adapter!r} has no pre-gate, so its experts are not known before the model runs; "
            "take method='read_me', or the scorer 'pre_gate'."
        )
    layer = layers[0]
    context = RouteContext(token_mask=attention_mask, input_ids=input_ids)
    context.embeddings = partial(token_embeddings, model)
    bank = layer.bank(adapter)
    tokens = torch.zeros(input_ids.numel(), layer.in_features, dtype=bank.a.dtype, device=bank.a.device)
    decision = layer.routers[adapter](layer, tokens, context, bank, adapter, layer.site, None)
    return decision.selected.view(*input_ids.shape, -1)
