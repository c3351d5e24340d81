"""Transforms of parameter updates, applied after the optimizer, and the statistics that they need."""

from moe_adapt.updates.base import ROUTER_UPDATES, RouterUpdate, UpdateHook, UpdateTransform
from moe_adapt.updates.freezing import ExpertUsage, FreezeExperts
from moe_adapt.updates.guard import GuardUpdate
from moe_adapt.updates.moment import InputMoment
from moe_adapt.updates.preconditioner import DownPreconditioner, ExpertDownPreconditioner, UpPreconditioner
from moe_adapt.updates.router import (
    NullRatioUpdate,
    PaperUpdate,
    PlainUpdate,
    RelevantUpdate,
    SoftUpdate,
    StrictUpdate,
)
from moe_adapt.updates.sampling import RowSample
from moe_adapt.updates.sketch import FrequentDirections
from moe_adapt.updates.spectrum import SpectralFilter, Spectrum
from moe_adapt.updates.trust import TrustUpdate

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
    "SoftUpdate",
    "SpectralFilter",
    "Spectrum",
    "StrictUpdate",
    "TrustUpdate",
    "UpPreconditioner",
    "UpdateHook",
    "UpdateTransform",
]
