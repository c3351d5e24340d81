"""DriftMoE: a mixture of online experts with a neural router."""

from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier
from moe_adapt.drift.driftmoe.regressor import DriftMoERegressor

__all__ = ["DriftMoEClassifier", "DriftMoERegressor"]
