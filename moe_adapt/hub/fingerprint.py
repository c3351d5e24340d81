"""What belongs to an adapter and what to its frozen base, and a hash by which a base is known again."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moe_adapt.tuner.loading import is_adapter_key

__all__ = ["adapter_state", "digest", "fingerprint"]


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the part of `module`'s state that is not frozen base: trainable tensors and tensors of ours."""
    trainable = _trainable(module)
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if (name in trainable or is_adapter_key(name)) and not _is_kept_original(name)
    }


def fingerprint(module: nn.Module, samples: int = 64) -> str:
    """Return a hash of the frozen base: names, shapes, types and up to `samples` values of every tensor."""
    trainable = _trainable(module)
    return digest(
        {
            name: tensor
            for name, tensor in module.state_dict().items()
            if not (name in trainable or is_adapter_key(name) or _is_kept_original(name))
        },
        samples,
    )


def digest(tensors: Mapping[str, Tensor], samples: int = 64) -> str:
    """Return a hash of tensors: names, shapes, types and up to `samples` values of each."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if samples:
            stride = max(1, tensor.numel() // samples)
            values = tensor.detach().reshape(-1)[::stride][:samples].contiguous().cpu()
            found.update(values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}


def _is_kept_original(name: str) -> bool:
    """Return whether PEFT keeps this tensor beside one that is trained whole."""
    return ".original_module." in name
