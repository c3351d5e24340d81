"""Mixed batches of PEFT's own LoRA adapters, computed with one operator call per layer.

Given `adapter_names`, PEFT runs a layer's LoRA once per adapter on the rows that name it: indexing, two small
products and an indexed addition each. Here the adapters of a layer are stacked to one rank, and one call
computes all rows (`moe_adapt.kernels.serving`), however many adapters there are.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.kernels.serving import AdapterStack, mixed_batch
from moe_adapt.tuner.mixed_batch import token_ids
from moe_adapt.tuner.peft_plugin import linear_lora_layers

__all__ = ["MixedLoraBatches"]


class MixedLoraBatches:
    """Takes over the mixed batches of a PEFT model with LoRA adapters of any ranks.

        with MixedLoraBatches(model):
            model.generate(**batch, adapter_names=["french", "german", "__base__"])

    How the model is called does not change; only how its linear LoRA layers compute a batch with
    `adapter_names` does, until `remove()` or the end of the block. Embeddings and convolutions keep PEFT's
    way. Each layer keeps a stacked copy of its adapters, which is made again when they change.

    Args:
        model: The model.
        impl: Name of the implementation (`routed_lora`).

    Attributes:
        layers: Paths of the layers that are taken over.

    Raises:
        UserError: If the model has no linear LoRA layer.
    """

    def __init__(self, model: nn.Module, impl: str = "auto") -> None:
        self.impl = impl
        self._stacks: dict[nn.Module, tuple[tuple, AdapterStack]] = {}
        self._modules = linear_lora_layers(model)
        if not self._modules:
            raise UserError("the model has no linear LoRA layers; put LoRA adapters on it with PEFT first.")
        self.layers = tuple(self._modules)
        for module in self._modules.values():
            module.__dict__["_mixed_batch_forward"] = MethodType(self._forward, module)

    def _forward(
        self,
        layer: Any,
        x: Tensor,
        *args: Any,
        adapter_names: list[str],
        alora_offsets: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        result = layer.base_layer(x, *args, **kwargs)
        known = [name for name in layer.lora_A if name in adapter_names]
        for name in known:
            if name in layer.lora_variant or layer.lora_B[name].bias is not None:
                raise UserError(
                    f"the adapter {name!r} is more than plain LoRA (a variant such as DoRA, or with a bias); "
                    "call remove() and let PEFT compute the batch."
                )
        if not known:
            return result
        stack = self._stack(layer)
        tokens = x.reshape(-1, x.shape[-1]).to(stack.a.dtype)
        ids = token_ids(adapter_names, layer.lora_A, x)
        y = mixed_batch(tokens, result.reshape(-1, result.shape[-1]), stack, ids, self.impl)
        return y.to(result.dtype).view(result.shape)

    def _stack(self, layer: Any) -> AdapterStack:
        adapters = [
            (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
            for name in layer.lora_A
        ]
        if torch.is_grad_enabled() and any(a.requires_grad or b.requires_grad for a, b, _ in adapters):
            return AdapterStack.of(adapters)
        state = tuple((_version(a), _version(b), scale) for a, b, scale in adapters)
        if layer not in self._stacks or self._stacks[layer][0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._stacks[layer] = (state, AdapterStack.of(adapters))
        return self._stacks[layer][1]

    def remove(self) -> None:
        """Give the layers their own way back."""
        for module in self._modules.values():
            module.__dict__.pop("_mixed_batch_forward", None)
        self._stacks.clear()

    def __enter__(self) -> "MixedLoraBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _version(tensor: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    """Return what changes when a tensor is written to, replaced, cast or moved."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device
