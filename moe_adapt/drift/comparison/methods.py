"""The learners that recipes name: the baselines and our own."""

from collections.abc import Callable
from typing import Any

from moe_adapt.drift.comparison.baselines import BASELINES
from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.errors import UserError

__all__ = ["METHODS"]

_PRESETS = ("drift_aware", "paper")


def _driftmoe(stream: DriftStream, seed: int, preset: str = "drift_aware", **options: Any) -> Any:
    from moe_adapt.drift.driftmoe import DriftMoEClassifier

    if preset not in _PRESETS:
        raise UserError(f"the preset of driftmoe is {' or '.join(_PRESETS)}, not {preset!r}.")
    build = DriftMoEClassifier.paper if preset == "paper" else DriftMoEClassifier
    return build(nominal_attributes=tuple(sorted(stream.nominal)) or None, seed=seed, **options)


def _fast_tree(stream: DriftStream, seed: int, **options: Any) -> Any:
    from moe_adapt.drift.hoeffding import FastHoeffdingTree

    return FastHoeffdingTree(nominal_attributes=tuple(sorted(stream.nominal)) or None, **options)


#: Kind -> builder, called with the stream, the seed and the recipe's options.
METHODS: dict[str, Callable[..., Any]] = {
    **BASELINES,
    "fast_hoeffding_tree": _fast_tree,
    "driftmoe": _driftmoe,
}
