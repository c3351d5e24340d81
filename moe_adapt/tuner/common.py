"""Tensors that the sites of an adapter have in common: one module in the base model holds each of them once.

A file, an optimizer and an export see such a tensor under one name, ``moe_adapt_common.<part>.<container>``,
and it is counted once. The part ``router`` has the tensors of routers that are one for all sites
(`Scorer.common`); a part ``pool_<name>`` has the experts of a pool of sites (`moe_adapt.tuner.pools`). Each
container is keyed by adapter, as in adapted layers, so that names survive loading under another one.
"""

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner.peft_plugin import PREFIX, AdapterLayer, BufferDict

__all__ = [
    "COMMON",
    "CommonTensors",
    "common_part",
    "common_parts",
    "install_common",
    "remove_common",
    "settle_common",
]

#: Name of the module in the base model.
COMMON = f"{PREFIX}common"


class CommonTensors(nn.Module, AdapterLayer):
    """Tensors by container and adapter, as a layer that PEFT saves, loads, freezes and deletes from.

    Args:
        site: Path of the module in the base model.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()

    def __init__(self, site: str) -> None:
        super().__init__()
        self.base_layer = nn.Identity()
        self.base_layer.register_parameter("weight", None)  # PEFT looks for it where it takes adapters off
        self.site, self.was_called = site, True
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def has(self, container: str, adapter: str) -> bool:
        """Return whether an adapter has a tensor in a container."""
        return adapter in getattr(self, container, ())

    def put(self, container: str, adapter: str, value: Tensor, keep: bool = False) -> None:
        """Put a parameter or buffer in.

        Args:
            container: Where.
            adapter: Name of the adapter.
            value: The tensor.
            keep: Whether one that is there already stays.

        Raises:
            UserError: If it should stay but has another shape.
        """
        if keep and self.has(container, adapter):
            self._check_shape(container, adapter, value)
            return
        trained = isinstance(value, nn.Parameter)
        if not hasattr(self, container):
            setattr(self, container, nn.ParameterDict() if trained else BufferDict({}, persistent=True))
            listing = "adapter_layer_names" if trained else "other_param_names"
            setattr(self, listing, (*getattr(self, listing), container))
        getattr(self, container)[adapter] = value

    def _check_shape(self, container: str, adapter: str, value: Tensor) -> None:
        shapes = [[*tensor.shape] for tensor in (self.get(container, adapter), value)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"layers of the adapter {adapter!r} share tensors, but {container!r} would be {shapes[0]} "
                f"for one and {shapes[1]} for another; give num_experts and r as one number each."
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Do nothing: layers merge what they take from here."""

    def unmerge(self) -> None:
        """Do nothing; see `merge`."""

    def move(self, adapter: str, device: torch.device | None) -> None:
        """Move an adapter's tensors to where its layers are."""
        self._move_adapter_to_device_of_base_layer(adapter, device)

    def forget(self, adapter: str) -> None:
        """Drop what a deleted adapter has here."""
        for container in (*self.adapter_layer_names, *self.other_param_names):
            if self.has(container, adapter):
                del getattr(self, container)[adapter]

    def get(self, container: str, adapter: str) -> Tensor:
        """Return a tensor, looked up afresh: loading may replace it."""
        return getattr(self, container)[adapter]


def common_part(session: RoutingSession, part: str) -> CommonTensors:
    """Return a part of a model's common tensors, made the first time."""
    if part not in session.common:
        session.common[part] = CommonTensors(f"{COMMON}.{part}")
    return session.common[part]


def install_common(model: nn.Module, session: RoutingSession) -> None:
    """Make room for a model's common tensors; the module is left out of models that need none."""
    session.common = getattr(model, COMMON, nn.ModuleDict())


def settle_common(model: nn.Module, session: RoutingSession) -> None:
    """Put the common tensors into the model, if adapters have made some."""
    if len(session.common) and not hasattr(model, COMMON):
        setattr(model, COMMON, session.common)


def common_parts(session: RoutingSession) -> list[CommonTensors]:
    """Return the parts of a model's common tensors."""
    return [] if session.common is None else list(session.common.values())


def remove_common(model: nn.Module) -> None:
    """Take the common tensors off a model."""
    if hasattr(model, COMMON):
        delattr(model, COMMON)
