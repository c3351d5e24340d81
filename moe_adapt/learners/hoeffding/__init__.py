"""Hoeffding trees in flat arrays: a pool that DriftMoE's experts live in, and one tree on its own."""

from moe_adapt.learners.hoeffding.growth import TreeOptions
from moe_adapt.learners.hoeffding.pool import FastHoeffdingTreePool, Reading
from moe_adapt.learners.hoeffding.tree import FastHoeffdingTree

__all__ = ["FastHoeffdingTree", "FastHoeffdingTreePool", "Reading", "TreeOptions"]
