"""Selectors: from logits to gates."""

from moe_adapt.routing.selectors.dense import DenseSelector
from moe_adapt.routing.selectors.dynmole import DynMoleSelector
from moe_adapt.routing.selectors.top_k import TopKSelector
from moe_adapt.routing.selectors.top_p import TopPSelector

__all__ = ["DenseSelector", "DynMoleSelector", "TopKSelector", "TopPSelector"]
