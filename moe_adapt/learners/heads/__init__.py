"""Closed-form classification heads: one pass over frozen features, exact whatever the order of the data."""

from moe_adapt.learners.heads.base import ClosedFormHead, LinearHead
from moe_adapt.learners.heads.fecam import FeCamHead
from moe_adapt.learners.heads.lambda_choice import cross_validated_cosines, ridge_path_errors
from moe_adapt.learners.heads.ncm import NearestMeanHead
from moe_adapt.learners.heads.ranpac import RanPacHead
from moe_adapt.learners.heads.ridge import RidgeHead
from moe_adapt.learners.heads.slda import SldaHead
from moe_adapt.learners.heads.whitened import WhitenedMeanHead

__all__ = [
    "ClosedFormHead",
    "FeCamHead",
    "LinearHead",
    "NearestMeanHead",
    "RanPacHead",
    "RidgeHead",
    "SldaHead",
    "WhitenedMeanHead",
    "cross_validated_cosines",
    "ridge_path_errors",
]
