"""Models in use: open a run or an adapter, classify and generate, answer over HTTP."""

from moe_adapt.serving.classify import Answer, Classifying
from moe_adapt.serving.generate import Generating, Sampling
from moe_adapt.serving.opening import open_model
from moe_adapt.serving.pipeline import pipeline

__all__ = ["Answer", "Classifying", "Generating", "Sampling", "open_model", "pipeline"]
