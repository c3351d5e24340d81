"""Routing of whole samples: one decision per sequence, from statistics that experts can join and leave."""

from moe_adapt.routing.sample.base import SAMPLE_ROUTERS, SampleRouter
from moe_adapt.routing.sample.choice import leave_one_out, leave_out_of
from moe_adapt.routing.sample.lda import LdaRouter
from moe_adapt.routing.sample.moments import Moments
from moe_adapt.routing.sample.prototype import PrototypeSampleRouter
from moe_adapt.routing.sample.routes import SampleRoutes
from moe_adapt.routing.sample.rule import RuleShape, SampleRule
from moe_adapt.routing.sample.trained import TrainedRouter

__all__ = [
    "SAMPLE_ROUTERS",
    "LdaRouter",
    "Moments",
    "PrototypeSampleRouter",
    "RuleShape",
    "SampleRouter",
    "SampleRoutes",
    "SampleRule",
    "TrainedRouter",
    "leave_one_out",
    "leave_out_of",
]
