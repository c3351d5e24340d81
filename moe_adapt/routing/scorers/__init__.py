"""Scorers: a logit per token and expert."""

from moe_adapt.routing.scorers.linear import LinearScorer
from moe_adapt.routing.scorers.uniform import UniformScorer

__all__ = ["LinearScorer", "UniformScorer"]
