"""Auxiliary losses on routing decisions."""

from moe_adapt.routing.losses.entropy import EntropyLoss
from moe_adapt.routing.losses.load_balance import LoadBalanceLoss
from moe_adapt.routing.losses.new_expert_balance import NewExpertBalanceLoss
from moe_adapt.routing.losses.pool_balance import PoolBalanceLoss
from moe_adapt.routing.losses.preserve import PreserveLoss
from moe_adapt.routing.losses.router_coupling import RouterCouplingLoss
from moe_adapt.routing.losses.routing_anchor import RoutingAnchorLoss
from moe_adapt.routing.losses.routing_separation import RoutingSeparationLoss
from moe_adapt.routing.losses.specialization_balance import SpecializationBalanceLoss
from moe_adapt.routing.losses.z_loss import ZLoss

__all__ = [
    "EntropyLoss",
    "LoadBalanceLoss",
    "NewExpertBalanceLoss",
    "PoolBalanceLoss",
    "PreserveLoss",
    "RouterCouplingLoss",
    "RoutingAnchorLoss",
    "RoutingSeparationLoss",
    "SpecializationBalanceLoss",
    "ZLoss",
]
