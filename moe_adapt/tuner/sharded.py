"""Adapters on a model that is sharded over processes with FSDP2 (`torch.distributed.fsdp.fully_shard`).

`shard_blocks` shards every block that holds an adapted layer, and then the rest. A routed layer needs nothing
more: its parameters are whole while its block runs, decisions and auxiliary losses are about activations,
which are never sharded, and gradients are averaged as those of any parameter. Frozen experts and statistics
are buffers, which stay whole in every process. `save_sharded` gathers the adapter and writes one file.

Auxiliary losses on the experts' parameters look at them between forward and backward, when they are in
shards. They are refused.

Reference: PyTorch FSDP, arXiv 2304.11277.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.tuner.common import COMMON
from moe_adapt.tuner.loading import is_adapter_key

__all__ = ["full_adapter_state", "save_sharded", "shard_blocks"]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost lists of modules that hold an adapted layer."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            yield from (block for block in child if _is_adapted(block))
        else:
            yield from _blocks(child)


def _is_adapted(module: nn.Module) -> bool:
    return any(hasattr(part, "was_called") for part in module.modules())


def shard_blocks(model: PeftModel, **options: Any) -> PeftModel:
    """Shard a model with routed adapters over the processes; do it before an optimizer is built.

    Args:
        model: The model, on the device that it trains on.
        options: Arguments of `torch.distributed.fsdp.fully_shard`, such as ``mesh`` or ``mp_policy``.

    Raises:
        UserError: If an auxiliary loss looks at the experts' parameters, or layers share tensors.
    """
    from torch.distributed.fsdp import fully_shard

    if any(name.endswith(COMMON) for name, _ in model.named_modules()):
        raise UserError(
            "layers of this adapter share tensors, which shard_blocks would not keep in one place; take a "
            "method whose layers have their own, or train with ddp."
        )
    for name, config in model.peft_config.items():
        losses = getattr(config, "aux_losses", None) or []
        on_experts = [loss for loss in losses if _is_on_experts(loss)]
        if on_experts:
            raise UserError(
                f"the adapter {name!r} has the loss {on_experts[0]!r} on the experts' parameters, which are "
                "in shards when it is computed; drop the loss, or train with ddp."
            )
    for block in _blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def _is_on_experts(loss: Any) -> bool:
    from moe_adapt.routing import AUX_LOSSES, ExpertLoss

    return issubclass(AUX_LOSSES.resolve(loss)[0], ExpertLoss)


def full_adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what is trained and every tensor of an adapter, whole, on the CPU; all processes must call it.

    Args:
        model: The model, sharded or not.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {}
    for name, tensor in model.state_dict().items():
        if name in trained or is_adapter_key(name):
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            state[name] = whole.detach().cpu().clone()
    return state


def save_sharded(model: PeftModel, folder: str | Path) -> None:
    """Write the adapters of a sharded model as `save_pretrained` does; all processes must call it.

    Args:
        model: The model.
        folder: The folder; the first process writes it.
    """
    state = full_adapter_state(model)
    if not dist.is_initialized() or dist.get_rank() == 0:
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    if dist.is_initialized():
        dist.barrier()
