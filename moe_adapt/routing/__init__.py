"""Routing: scorers, modifiers, selectors and auxiliary losses, and the router that chains them."""

from moe_adapt.routing.base import (
    AUX_LOSSES,
    MODIFIERS,
    SCORERS,
    SELECTORS,
    AuxLoss,
    ExpertLoss,
    LogitModifier,
    Logits,
    RoutingDecision,
    Scorer,
    Selector,
    SiteExperts,
)
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.losses import *  # noqa: F403
from moe_adapt.routing.modifiers import *  # noqa: F403
from moe_adapt.routing.records import RecordGroup, RoutingRecord, group_records
from moe_adapt.routing.router import Router
from moe_adapt.routing.scorers import *  # noqa: F403
from moe_adapt.routing.selectors import *  # noqa: F403

__all__ = [
    "AUX_LOSSES",
    "MODIFIERS",
    "SCORERS",
    "SELECTORS",
    "AuxLoss",
    "ExpertLoss",
    "LogitModifier",
    "Logits",
    "RecordGroup",
    "RouteContext",
    "Router",
    "RoutingDecision",
    "RoutingRecord",
    "Scorer",
    "Selector",
    "SiteExperts",
    "group_records",
]
