"""Continual learners: one file each, on one contract."""

from moe_adapt.learners.base import LEARNERS, Learner, Outcome, TaskRun
from moe_adapt.learners.fine_tuning import FineTuning, Joint
from moe_adapt.learners.growth import grow_rows, resize_to
from moe_adapt.learners.heads.trainable import GrowingCosine, GrowingLinear

__all__ = [
    "LEARNERS",
    "FineTuning",
    "GrowingCosine",
    "GrowingLinear",
    "Joint",
    "Learner",
    "Outcome",
    "TaskRun",
    "grow_rows",
    "resize_to",
]
