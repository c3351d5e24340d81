"""Continual learners: one file each, on one contract."""

from moe_adapt.learners.base import LEARNERS, Learner, Outcome, TaskRun
from moe_adapt.learners.care import Care
from moe_adapt.learners.closed_form import FeCam, NearestMean, RanPac, Ridge, Slda, WhitenedMean
from moe_adapt.learners.compose import Compose
from moe_adapt.learners.ewc import Ewc
from moe_adapt.learners.fine_tuning import FineTuning, Joint
from moe_adapt.learners.growth import grow_rows, resize_to
from moe_adapt.learners.heads.trainable import GrowingCosine, GrowingLinear
from moe_adapt.learners.instructions import *  # noqa: F403
from moe_adapt.learners.lwf import LwF
from moe_adapt.learners.replay import DarkReplay, ExperienceReplay
from moe_adapt.learners.reservoir import ReservoirBuffer

__all__ = [
    "LEARNERS",
    "Care",
    "Compose",
    "DarkReplay",
    "Ewc",
    "ExperienceReplay",
    "FeCam",
    "FineTuning",
    "GrowingCosine",
    "GrowingLinear",
    "Joint",
    "Learner",
    "LwF",
    "NearestMean",
    "Outcome",
    "RanPac",
    "ReservoirBuffer",
    "Ridge",
    "Slda",
    "TaskRun",
    "WhitenedMean",
    "grow_rows",
    "resize_to",
]
