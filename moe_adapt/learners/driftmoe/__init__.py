"""DriftMoE: a mixture of online experts with a neural router."""

from moe_adapt.learners.driftmoe.classifier import DriftMoEClassifier

__all__ = ["DriftMoEClassifier"]
