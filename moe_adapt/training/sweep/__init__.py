"""Sweeps: the same command for several methods, tasks and seeds, many at a time."""

from moe_adapt.training.sweep.plan import Sweep, Trial

__all__ = ["Sweep", "Trial"]
