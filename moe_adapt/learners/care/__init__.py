"""CaRE: bi-level routing over experts, routers and class perceptrons that are added task by task."""

from moe_adapt.learners.care.block import CareBlock, CareOptions, Scope
from moe_adapt.learners.care.learner import Care

__all__ = ["Care", "CareBlock", "CareOptions", "Scope"]
