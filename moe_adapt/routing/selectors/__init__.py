"""Selectors: from logits to gates."""

from moe_adapt.routing.selectors.complement import ComplementSelector
from moe_adapt.routing.selectors.condenser import CondenserSelector
from moe_adapt.routing.selectors.dense import DenseSelector
from moe_adapt.routing.selectors.dynmole import DynMoleSelector
from moe_adapt.routing.selectors.growing_top_k import GrowingTopKSelector
from moe_adapt.routing.selectors.hard_soft import HardSoftSelector
from moe_adapt.routing.selectors.keyed import KeyedSelector
from moe_adapt.routing.selectors.null_experts import NullExpertsSelector
from moe_adapt.routing.selectors.on_off import OnOffSelector
from moe_adapt.routing.selectors.product_top_k import ProductTopKSelector
from moe_adapt.routing.selectors.sampled import SampledSelector
from moe_adapt.routing.selectors.score_top_k import ScoreTopKSelector
from moe_adapt.routing.selectors.sigmoid import SigmoidSelector
from moe_adapt.routing.selectors.sparsegen import SparsegenSelector
from moe_adapt.routing.selectors.sum import SumSelector
from moe_adapt.routing.selectors.top_k import TopKSelector
from moe_adapt.routing.selectors.top_p import TopPSelector

__all__ = [
    "ComplementSelector",
    "CondenserSelector",
    "DenseSelector",
    "DynMoleSelector",
    "GrowingTopKSelector",
    "HardSoftSelector",
    "KeyedSelector",
    "NullExpertsSelector",
    "OnOffSelector",
    "ProductTopKSelector",
    "SampledSelector",
    "ScoreTopKSelector",
    "SigmoidSelector",
    "SparsegenSelector",
    "SumSelector",
    "TopKSelector",
    "TopPSelector",
]
