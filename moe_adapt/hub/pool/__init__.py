"""Pools of published adapters, and routing over them: before the model, or inside it."""

from moe_adapt.hub.pool.router import AdapterRouter, Plan, PrototypeRouter, StatisticsRouter
from moe_adapt.hub.pool.store import AdapterPool, Member

__all__ = ["AdapterPool", "AdapterRouter", "Member", "Plan", "PrototypeRouter", "StatisticsRouter"]
