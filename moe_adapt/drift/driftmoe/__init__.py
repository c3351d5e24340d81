"""DriftMoE: a mixture of online experts with a neural router."""

from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["DriftMoEClassifier"]
