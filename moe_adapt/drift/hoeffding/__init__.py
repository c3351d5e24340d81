"""Hoeffding trees in flat arrays: a pool that DriftMoE's experts live in, and one tree on its own."""

from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool, Reading
from moe_adapt.drift.hoeffding.growth import TreeOptions
from moe_adapt.drift.hoeffding.tree import FastHoeffdingTree

__all__ = ["FastHoeffdingTree", "FastHoeffdingTreePool", "Reading", "TreeOptions"]
