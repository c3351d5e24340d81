"""Batches whose samples use different routed adapters: `model(**batch, adapter_names=[...])`, or `generate`.

One call of the operator computes the experts of all adapters of a layer; the router of each adapter decides
about the rows that name it. Evaluation mode only, as PEFT has it for LoRA. The name `__base__` stands for no
adapter.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.serving import stack_factors
from moe_adapt.tuner.peft_plugin import AuxiliaryTrainingWrapper
from moe_adapt.tuner.sample_experts import site_gates

__all__ = ["BASE", "add_mixed_experts", "naming_adapters", "token_ids"]

#: What a sample names that uses no adapter.
BASE = "__base__"


@lru_cache(maxsize=1024)
def _ids(names: tuple[str, ...], known: tuple[str, ...], device: torch.device) -> Tensor:
    """Return the place of each sample's adapter among the known ones, int32 [B]; -1 for none."""
    places = {name: place for place, name in enumerate(known)}
    with torch.inference_mode(False):
        return torch.tensor([places.get(name, -1) for name in names], dtype=torch.int32, device=device)


def token_ids(names: Sequence[str], known: Iterable[str], x: Tensor) -> Tensor:
    """Return the place of each token's adapter among the known ones, int32 [N]; -1 for none.

    Args:
        names: Adapter of each sample.
        known: Adapters of the layer.
        x: Its input, [B, ..., d].

    Raises:
        UserError: If there is not one name per sample.
    """
    if len(names) != len(x):
        raise UserError(f"adapter_names has {len(names)} names for {len(x)} samples; give one per sample.")
    ids = _ids(tuple(names), tuple(known), x.device)
    return ids.repeat_interleave(x[0].numel() // x.shape[-1] if len(x) else 1)


@contextmanager
def naming_adapters(
    model: nn.Module,
    layers: type[nn.Module],
    names: Sequence[str] | None,
    known: Collection[str],
    beams: int = 1,
) -> Iterator[None]:
    """Hand `adapter_names` to the adapted layers of a model while the block runs.

    Args:
        model: The model.
        layers: Type of the layers that take the argument, beside PEFT's copies of saved modules.
        names: Adapter of each sample; None does nothing.
        known: Names that exist.
        beams: Beams of a beam search, which repeats every sample.

    Raises:
        UserError: In training mode, or for an unknown name.
    """
    if names is None:
        yield
        return
    if model.training:
        raise UserError("adapter_names mixes adapters for inference; call model.eval() first.")
    for name in names:
        if name != BASE and name not in known:
            raise UserError(
                f"there is no adapter {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )

    def inject(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        searched = args and len(args[0]) == beams * len(names)
        repeated = [name for name in names for _ in range(beams)] if searched else list(names)
        return args, kwargs | {"adapter_names": repeated}

    handles = [
        module.register_forward_pre_hook(inject, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, layers | AuxiliaryTrainingWrapper)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_mixed_experts(layer: Any, x: Tensor, result: Tensor, names: Sequence[str]) -> Tensor:
    """Return the base output plus the mixture of each sample's own routed adapter.

    Every adapter's router sees all tokens, so that shapes do not depend on the names; its gates count only on
    its own rows, and so do its records. One call computes all experts that are LoRAs; each other bank has its
    own.

    Args:
        layer: The `RoutedLoraLayer`.
        x: Its input, [B, ..., d].
        result: The base output, [B, ..., o].
        names: Adapter of each sample.
    """
    known = [name for name in layer.specs if name in names]
    ids = token_ids(names, known, x)
    if not known:
        return result
    tokens = x.reshape(-1, layer.in_features)
    context = layer.session.current(layer.training)
    mask = context.arrive(layer.site, x)
    dtype = tokens.dtype if all(layer.base_compute[name] for name in known) else None
    blocks, gates, others = [], [], []
    for place, name in enumerate(known):
        bank, mine = layer.bank(name, dtype), ids == place
        own = mine if mask is None else mine & mask
        if layer.by_sample[name]:
            routed = site_gates(context.routes[name], layer.specs[name].names)
            chosen = routed.repeat_interleave(len(tokens) // len(routed), dim=0)
        else:
            chosen = layer.routers[name](layer, tokens, context, bank, name, layer.site, own).gates
        if not bank.has_own_factors:
            others.append((bank, chosen, mine.unsqueeze(1)))
            continue
        stored = chosen if bank.order is None else chosen[:, list(bank.order)]
        gates.append(stored.masked_fill(~mine.unsqueeze(1), 0) * bank.scale)
        blocks.append((bank.a.expand(bank.num_experts, -1, -1), bank.b))
    base = y = result.reshape(-1, layer.out_features)
    if blocks:
        a, b = stack_factors(blocks, dtype)
        y = routed_lora(tokens.to(a.dtype), base, a, b, 1.0, gates=torch.cat(gates, dim=1))
    for bank, chosen, mine in others:
        y = torch.where(mine, bank(tokens.to(bank.a.dtype), chosen, base), y)
    return y.to(result.dtype).view(result.shape)
