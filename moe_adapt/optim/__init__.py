"""Parameter groups, schedules, and transforms of parameter updates, applied after the optimizer."""

from moe_adapt.optim.base import ROUTER_UPDATES, RouterUpdate, UpdateHook, UpdateTransform
from moe_adapt.optim.freezing import ExpertUsage, FreezeExperts
from moe_adapt.optim.groups import (
    Schedule,
    check_coverage,
    learning_rate_factor,
    momentum_sgd,
    parameter_groups,
    with_schedule,
)
from moe_adapt.optim.guard import GuardUpdate
from moe_adapt.optim.moment import InputMoment
from moe_adapt.optim.preconditioner import DownPreconditioner, ExpertDownPreconditioner, UpPreconditioner
from moe_adapt.optim.router import (
    NullRatioUpdate,
    PaperUpdate,
    PlainUpdate,
    RelevantUpdate,
    SoftUpdate,
    StrictUpdate,
)
from moe_adapt.optim.sampling import RowSample
from moe_adapt.optim.sketch import FrequentDirections
from moe_adapt.optim.spectrum import SpectralFilter, Spectrum
from moe_adapt.optim.trust import TrustUpdate

__all__ = [
    "ROUTER_UPDATES",
    "DownPreconditioner",
    "ExpertDownPreconditioner",
    "ExpertUsage",
    "FreezeExperts",
    "FrequentDirections",
    "GuardUpdate",
    "InputMoment",
    "NullRatioUpdate",
    "PaperUpdate",
    "PlainUpdate",
    "RelevantUpdate",
    "RouterUpdate",
    "RowSample",
    "Schedule",
    "SoftUpdate",
    "SpectralFilter",
    "Spectrum",
    "StrictUpdate",
    "TrustUpdate",
    "UpPreconditioner",
    "UpdateHook",
    "UpdateTransform",
    "check_coverage",
    "learning_rate_factor",
    "momentum_sgd",
    "parameter_groups",
    "with_schedule",
]
