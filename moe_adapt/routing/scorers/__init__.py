"""Scorers: a logit per token and expert."""

from moe_adapt.routing.scorers.arrow import ArrowScorer
from moe_adapt.routing.scorers.cosine import CosineScorer
from moe_adapt.routing.scorers.frozen_linear import FrozenLinearScorer
from moe_adapt.routing.scorers.hash import HashScorer
from moe_adapt.routing.scorers.k_means import KMeansScorer
from moe_adapt.routing.scorers.linear import LinearScorer
from moe_adapt.routing.scorers.phatgoose import PhatgooseScorer
from moe_adapt.routing.scorers.pre_gate import PreGateScorer
from moe_adapt.routing.scorers.product_key import ProductKeyScorer
from moe_adapt.routing.scorers.random import RandomScorer
from moe_adapt.routing.scorers.random_fixed import RandomFixedScorer
from moe_adapt.routing.scorers.recurrent import RecurrentScorer
from moe_adapt.routing.scorers.uniform import UniformScorer

__all__ = [
    "ArrowScorer",
    "CosineScorer",
    "FrozenLinearScorer",
    "HashScorer",
    "KMeansScorer",
    "LinearScorer",
    "PhatgooseScorer",
    "PreGateScorer",
    "ProductKeyScorer",
    "RandomFixedScorer",
    "RandomScorer",
    "RecurrentScorer",
    "UniformScorer",
]
