"""Pools of experts: adapted layers that have one bank together, each with a router of its own.

With ``pool={"by": "shape"}`` all layers with the same numbers of inputs and outputs share their experts
(UniPool); with ``pool={"by": "name", "sites": r}`` every `r` adjacent layers of one name do, say the query
projections of two blocks (ReXMoE). ``num_experts`` is the number of experts that a router chooses from, that
is, of the pool. The experts exist once: in memory, in the optimizer, in the file, in counts.

Merging needs constant gates, as ever; exports work, since an export has factors for each layer. What would
change the experts of one layer alone is refused: freezing, adding, pruning.

Reference: Huang et al., "UniPool: A Globally Shared Expert Pool for Mixture-of-Experts", arXiv 2605.06665;
Tan et al., "ReXMoE: Reusing Experts with Minimal Overhead in Mixture-of-Experts", arXiv 2510.17483.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner.common import CommonTensors, common_part
from moe_adapt.tuner.peft_plugin import BaseTunerLayer, is_supported_layer, layer_shape
from moe_adapt.tuner.site import SiteSpec

__all__ = ["PoolPlan", "SharesExperts", "cast_experts", "check_pool"]


def check_pool(pool: Mapping[str, Any]) -> None:
    """Check the option ``pool`` of a configuration.

    Raises:
        UserError: For other keys, or values out of range.
    """
    sites = pool.get("sites")
    whole = isinstance(sites, int) and not isinstance(sites, bool)
    known = set(pool) <= {"by", "sites"} and pool.get("by", "shape") in ("shape", "name")
    if not known or not (sites is None or (whole and sites >= 1)):
        raise UserError(
            "pool is a mapping with by ('shape' or 'name') and sites (a whole number of adjacent layers, or "
            f"null for all), got {dict(pool)!r}."
        )


class PoolPlan:
    """Gives each adapted layer the name of its pool, in the order of the layers.

    Args:
        pool: The option ``pool``; None gives every layer its own experts.

    >>> plan = PoolPlan({"by": "name", "sites": 2})
    >>> [plan.name(f"block.{i}.query", nn.Linear(8, 8)) for i in range(3)]
    ['0', '0', '1']
    """

    def __init__(self, pool: Mapping[str, Any] | None) -> None:
        self.pool = pool
        self._seen: dict[tuple[Any, ...], int] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def name(self, site: str, layer: nn.Module) -> str | None:
        """Return the name of the pool of a layer.

        Args:
            site: Path of the layer.
            layer: The layer, or an adapter layer around it.

        Raises:
            UserError: If it is no linear layer.
        """
        if self.pool is None:
            return None
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if not is_supported_layer(base):
            raise UserError(
                f"the layer {site!r} is a {type(base).__name__}, but a pool has experts of linear layers; "
                "leave it out of target_modules, or set pool to null."
            )
        shape = layer_shape(base)
        by_name = self.pool.get("by", "shape") == "name"
        kind = (*shape, re.sub(r"\d+", "#", site) if by_name else "")
        place = self._seen.get(kind, 0)
        self._seen[kind] = place + 1
        sites = self.pool.get("sites")
        key = (*kind, place // sites if sites else 0)
        return self._names.setdefault(key, str(len(self._names)))


class SharesExperts:
    """A layer whose experts may be in a pool, and whose router may share tensors."""

    site: str
    session: RoutingSession
    specs: dict[str, SiteSpec]
    routers: dict[str, Any]

    def join_pool(
        self, adapter: str, spec: SiteSpec, down: nn.Parameter, up: nn.Parameter, trainable: bool
    ) -> None:
        """Make the experts of a pool from these factors, unless another layer has."""
        pool = common_part(self.session, f"pool_{spec.pool}")
        for name, parameter in (("A", down), ("B", up)):
            pool.put(f"moe_adapt_{name}", adapter, parameter.requires_grad_(trainable), keep=True)

    def pool(self, adapter: str) -> CommonTensors | None:
        """Return the pool of an adapter's experts here, or None if they are the layer's own."""
        pool = self.specs[adapter].pool
        return None if pool is None else common_part(self.session, f"pool_{pool}")

    def common_router(self) -> CommonTensors:
        """Return the owner of the routers' tensors that all layers share."""
        return common_part(self.session, "router")

    def move_common(self, adapter: str) -> None:
        """Move what layers share to where this one is."""
        layer: Any = self
        device, _ = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
        for part in (self.routers[adapter].common, self.pool(adapter)):
            if part is not None:
                part.move(adapter, device)

    def refuse_pool(self, adapter: str) -> None:
        """Raise `UserError` if other layers have the same experts, so that this layer's cannot be changed."""
        if self.specs[adapter].pool is not None:
            raise UserError(
                f"the experts of {self.site} are in a pool that other layers use, so they are not edited or "
                "frozen layer by layer; use a method without a pool."
            )


def cast_experts(layers: Iterable[Any], adapter: str) -> None:
    """Give the experts of an adapter the dtype of their base layers."""
    for layer in layers:
        owner = (layer.pool(adapter) if adapter in layer.specs else None) or layer
        _, dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
        for name in ("moe_adapt_A", "moe_adapt_B", "moe_adapt_A_frozen", "moe_adapt_B_frozen"):
            container: Any = getattr(owner, name, {})
            if adapter in container and dtype is not None and dtype.is_floating_point:
                value = container[adapter]
                cast = value.detach().to(dtype)
                if isinstance(value, nn.Parameter):
                    cast = nn.Parameter(cast, requires_grad=value.requires_grad)
                container[adapter] = cast
