"""Router state as flat tensors, so that PEFT saves and reloads it under any adapter name.

PEFT strips the adapter's name from a saved key only if it is the last or second-to-last part. A nested module
keyed by adapter name therefore reloads as random weights under another name, with nothing but a warning. So
each tensor of a router lives in a ParameterDict or BufferDict of its own, keyed by adapter name: the tensor
``scorer.weight`` is ``<site>.moe_adapt_router__scorer__weight.<adapter>``. The module itself is a skeleton
without storage (meta device) that runs with these tensors through `torch.func.functional_call`. Tensors that
are one for all sites of an adapter (`Scorer.common`) live in `moe_adapt.tuner.common` in the same way.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moe_adapt.experts import BankKind, ExpertBank
from moe_adapt.routing import Router, RoutingDecision
from moe_adapt.tuner.common import CommonTensors
from moe_adapt.tuner.peft_plugin import PREFIX, BaseTunerLayer, BufferDict

__all__ = ["BANK_PREFIX", "ROUTER_PREFIX", "FlatBank", "FlatRouter"]

#: Containers of what a kind of bank has beside `A` and `B`, with a slice per expert.
BANK_PREFIX = f"{PREFIX}bank__"
ROUTER_PREFIX = f"{PREFIX}router__"


def _store(layer: BaseTunerLayer, container: str, adapter: str, value: Tensor) -> None:
    """Keep a tensor under an adapter's name in a container of the layer, made and listed if it is new."""
    trained = isinstance(value, nn.Parameter)
    if not hasattr(layer, container):
        setattr(layer, container, nn.ParameterDict() if trained else BufferDict({}, persistent=True))
        listing = "adapter_layer_names" if trained else "other_param_names"
        setattr(layer, listing, (*getattr(layer, listing), container))
    getattr(layer, container)[adapter] = value


class _AfterStep(nn.Module):
    """`Router.after_step` as a forward, which is what `functional_call` calls."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, sums: dict[str, Tensor]) -> None:
        self.router.after_step(sums)


class FlatRouter:
    """A router whose tensors are owned by an adapter layer.

    Args:
        layer: The layer that owns the containers; new ones are added to its `adapter_layer_names`
            (parameters) or `other_param_names` (buffers).
        adapter: Name of the adapter.
        router: The router, with initial values.
        trainable: Whether its parameters get gradients.
        common: Gives the owner of what is one for all sites.

    Raises:
        ValueError: If a parameter name of the router contains ``__``.
    """

    def __init__(
        self,
        layer: BaseTunerLayer,
        adapter: str,
        router: Router,
        trainable: bool,
        common: Callable[[], CommonTensors] | None = None,
    ) -> None:
        self.adapter = adapter
        self.containers: dict[str, str] = {}
        self.common = common() if common is not None and router.scorer.common else None
        self._in_common = tuple(f"scorer.{module}." for module in router.scorer.common)
        for name, parameter in router.named_parameters():
            self._store(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=trainable))
        for name, buffer in router.named_buffers():
            self._store(layer, name, buffer.clone())
        self.skeleton = router.to("meta")

    def _store(self, layer: BaseTunerLayer, name: str, value: Tensor) -> None:
        if "__" in name:
            raise ValueError(f"the router's tensor {name!r} must not have '__' in its name.")
        container = self.containers[name] = ROUTER_PREFIX + name.replace(".", "__")
        if self.common is not None and name.startswith(self._in_common):
            self.common.put(container, self.adapter, value, keep=True)
        else:
            _store(layer, container, self.adapter, value)

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the router's tensors by their own names, looked up afresh: loading may replace them."""
        found = {}
        for name, container in self.containers.items():
            shared = self.common is not None and name.startswith(self._in_common)
            found[name] = getattr(self.common if shared else layer, container)[self.adapter]
        return found

    def rows(self, layer: nn.Module) -> Tensor | None:
        """Return the rows [E, d] of a scorer that is one matrix product, or None (`Scorer.rows`)."""
        name = self.skeleton.scorer.rows
        return None if name is None else getattr(layer, self.containers[f"scorer.{name}"])[self.adapter]

    def after_step(self, layer: nn.Module, sums: dict[str, Tensor]) -> None:
        """Let the router update its buffers after an optimizer step."""
        tensors = {f"router.{name}": value for name, value in self.tensors(layer).items()}
        with torch.no_grad():
            functional_call(_AfterStep(self.skeleton), tensors, (sums,))

    def __call__(self, layer: nn.Module, *args: Any, scores: Tensor | None = None) -> RoutingDecision:
        """Run the router with the layer's tensors; known `scores` [N, E] spare the scorer its own."""
        if scores is not None and all(name.startswith("scorer.") for name in self.containers):
            return self.skeleton(*args, scores)
        return functional_call(self.skeleton, self.tensors(layer), (*args, scores))


class FlatBank:
    """What a kind of bank has beside `A` and `B`, owned by an adapter layer.

    Args:
        layer: The layer that owns the containers.
        adapter: Name of the adapter.
        kind: The kind of bank.
        size: Number of experts and rank.
        dtype: Of the tensors.
        trainable: Whether they get gradients.
    """

    def __init__(
        self,
        layer: BaseTunerLayer,
        adapter: str,
        kind: BankKind,
        size: tuple[int, int],
        dtype: torch.dtype,
        trainable: bool,
    ) -> None:
        self.adapter, self.kind = adapter, kind
        self.containers: dict[str, str] = {}
        for prefix, tensors in (
            (BANK_PREFIX, kind.expert_tensors(*size)),
            (f"{ROUTER_PREFIX}bank__", kind.router_tensors(*size)),
        ):
            for name, value in tensors.items():
                self.containers[name] = prefix + name
                _store(layer, prefix + name, adapter, nn.Parameter(value.to(dtype), requires_grad=trainable))

    def __call__(self, layer: nn.Module, factors: ExpertBank) -> ExpertBank:
        """Return the bank of stored factors and of the tensors as they are now."""
        tensors = {name: getattr(layer, own)[self.adapter] for name, own in self.containers.items()}
        return self.kind.bank(factors, tensors)
