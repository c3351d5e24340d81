"""The learners that recipes name: the baselines and our own."""

from collections.abc import Callable
from typing import Any

from moe_adapt.training.drift.baselines import BASELINES

__all__ = ["METHODS"]

#: Kind -> builder, called with the stream, the seed and the recipe's options.
METHODS: dict[str, Callable[..., Any]] = {**BASELINES}
