"""What a DriftMoE's settings mean: which engine they ask for, and which are mistakes."""

import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from river import base

from moe_adapt.drift import compiled
from moe_adapt.drift.committee.engine import CommitteeEngine
from moe_adapt.drift.committee.voices import PLAIN, voice_names
from moe_adapt.drift.driftmoe.engine import Engine
from moe_adapt.drift.driftmoe.task import TaskEngine
from moe_adapt.errors import UserError

if TYPE_CHECKING:
    from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["check_settings", "make_engine"]

_CHOICES = {
    "mode": ("committee", "data", "task"),
    "combine": ("vote", "top1"),
    "train_rule": ("routed", "routed_or_responsible", "all"),
    "task_rule": ("intended", "released"),
    "backend": ("auto", "compiled", "array", "river"),
}
#: Option that the committee does not have -> the modes that do.
_OF_PAPER = {
    **dict.fromkeys(("hidden", "dropout", "lr", "update_every", "neural"), "'data' or 'task'"),
    **dict.fromkeys(("top_k", "combine", "temperature", "train_rule", "warmup_rows"), "'data'"),
    "task_rule": "'task'",
}


def make_engine(model: "DriftMoEClassifier") -> CommitteeEngine | Engine:
    """Return the engine of a model."""
    if model.mode == "committee":
        return _committee(model)
    return TaskEngine(model) if model.mode == "task" else Engine(model)


def _committee(model: "DriftMoEClassifier") -> CommitteeEngine:
    """Return the compiled engine where everything it is asked for is its own, the plain one elsewhere."""
    foreign = [voice for voice in model.experts or () if not isinstance(voice, str) or voice in PLAIN]
    if model.expert is not None or not isinstance(model.detector, bool):
        foreign.append(model)
    if model.backend == "compiled" and foreign:
        raise UserError(
            "backend='compiled' has neither voices and detectors of River nor 'samknn'; use backend='auto'."
        )
    if model.backend == "compiled" and not compiled.available():
        raise UserError("backend='compiled' needs numba: pip install 'moe-adapt[drift]'.")
    if foreign or not compiled.available() or model.backend in ("array", "river"):
        return CommitteeEngine(model)
    from moe_adapt.drift.compiled.engine import CompiledEngine

    return CompiledEngine(model)


def check_settings(model: "DriftMoEClassifier") -> None:
    """Raise a `UserError` for a setting that cannot be."""
    for name, known in _CHOICES.items():
        if getattr(model, name) not in known:
            raise UserError(f"{name} is one of {', '.join(known)}, not {getattr(model, name)!r}.")
    for name in ("n_experts", "top_k", "hidden", "update_every"):
        if getattr(model, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(model, name)}.")
    if model.mode == "data" and model.top_k > model.n_experts:
        raise UserError(f"top_k={model.top_k} experts cannot be chosen from n_experts={model.n_experts}.")
    if not 0 <= model.dropout < 1:
        raise UserError(f"dropout is a share from 0 up to but not 1, got {model.dropout}.")
    poisson = 0.0 if model.poisson is None else model.poisson
    if model.temperature <= 0 or model.lr <= 0 or poisson < 0 or model.warmup_rows < 0:
        raise UserError("temperature and lr must be above 0, poisson and warmup_rows not below 0.")
    _check_experts(model)


def _check_committee(model: "DriftMoEClassifier") -> None:
    """Warn of an option that the committee ignores, and refuse an expert that it would not ask."""
    defaults = inspect.signature(type(model)).parameters
    for name, modes in _OF_PAPER.items():
        if getattr(model, name) != defaults[name].default:
            warnings.warn(
                f"{name} has no meaning in mode='committee', the default, and is ignored: leave {name} "
                f"out, or set mode to {modes}.",
                stacklevel=4,
            )
    if model.expert is not None and "trees" not in voice_names(model.experts):
        raise UserError("expert takes the place of the trees: add 'trees' to experts, or leave expert out.")


def _check_experts(model: "DriftMoEClassifier") -> None:
    if isinstance(model.expert, Sequence):
        raise UserError("expert is one classifier that is cloned; a list of voices is experts=[...].")
    if model.expert is not None and not isinstance(model.expert, base.Estimator):
        raise UserError(f"expert is a classifier of River, not {model.expert!r}.")
    if model.expert is not None and model.backend in ("array", "compiled"):
        raise UserError(
            f"backend={model.backend!r} has its own trees: leave expert out, or use backend='river'."
        )
    voice_names(model.experts)
    if model.mode == "committee":
        _check_committee(model)
    elif model.experts is not None or model.router:
        raise UserError("experts and router belong to mode='committee'.")
