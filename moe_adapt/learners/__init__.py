"""Continual learners: one file each, on one contract."""

from moe_adapt.learners.base import LEARNERS, Learner, Outcome, TaskRun
from moe_adapt.learners.care import Care
from moe_adapt.learners.closed_form import FeCam, NearestMean, RanPac, Ridge, Slda
from moe_adapt.learners.fine_tuning import FineTuning, Joint
from moe_adapt.learners.growth import grow_rows, resize_to
from moe_adapt.learners.heads.trainable import GrowingCosine, GrowingLinear
from moe_adapt.learners.instructions import *  # noqa: F403

__all__ = [
    "LEARNERS",
    "Care",
    "FeCam",
    "FineTuning",
    "GrowingCosine",
    "GrowingLinear",
    "Joint",
    "Learner",
    "NearestMean",
    "Outcome",
    "RanPac",
    "Ridge",
    "Slda",
    "TaskRun",
    "grow_rows",
    "resize_to",
]
