"""What every comparison on drift streams prints beside a new method.

No-change and majority take no learning; naive Bayes and one Hoeffding tree are the simple learners; ARF, SRP
and leveraging bagging, ten trees each with River's own defaults, are what people run today. Nominal columns
are declared to the trees. The adaptive tree, nearest neighbours and CapyMOA's learners can be asked for.
"""

from collections.abc import Callable
from numbers import Number
from typing import Any

from moe_adapt.drift.comparison.capymoa import CAPYMOA
from moe_adapt.drift.streams.base import DriftStream

__all__ = ["BASELINES"]


def _nominal(stream: DriftStream) -> list[str] | None:
    return sorted(stream.nominal) or None


def _no_change(stream: DriftStream, seed: int) -> Any:
    from river.dummy import NoChangeClassifier

    return NoChangeClassifier()


def _majority(stream: DriftStream, seed: int) -> Any:
    from river.dummy import PriorClassifier

    return PriorClassifier()


def _has_words(stream: DriftStream) -> bool:
    """Return whether a nominal column holds text, by its first value."""
    waiting = set(stream.nominal)
    for x, _ in stream:
        if not waiting:
            return False
        known = waiting & x.keys()
        if any(isinstance(x[name], str) for name in known):
            return True
        waiting -= known
    return False


def _naive_bayes(stream: DriftStream, seed: int) -> Any:
    from river import compose, naive_bayes, preprocessing

    model = naive_bayes.GaussianNB()
    if not _has_words(stream):
        return model
    words = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return (words + compose.SelectType(Number)) | model


def _hoeffding_tree(stream: DriftStream, seed: int) -> Any:
    from river.tree import HoeffdingTreeClassifier

    return HoeffdingTreeClassifier(nominal_attributes=_nominal(stream))


def _forest(stream: DriftStream, seed: int) -> Any:
    from river.forest import ARFClassifier

    return ARFClassifier(n_models=10, nominal_attributes=_nominal(stream), seed=seed)


def _patches(stream: DriftStream, seed: int) -> Any:
    from river.ensemble import SRPClassifier
    from river.tree import HoeffdingTreeClassifier

    tree = HoeffdingTreeClassifier(grace_period=50, delta=0.01, nominal_attributes=_nominal(stream))
    return SRPClassifier(model=tree, n_models=10, seed=seed)


def _leveraging(stream: DriftStream, seed: int) -> Any:
    from river.ensemble import LeveragingBaggingClassifier

    return LeveragingBaggingClassifier(model=_hoeffding_tree(stream, seed), n_models=10, seed=seed)


def _adaptive_tree(stream: DriftStream, seed: int) -> Any:
    from river.tree import HoeffdingAdaptiveTreeClassifier

    return HoeffdingAdaptiveTreeClassifier(nominal_attributes=_nominal(stream), seed=seed)


def _neighbours(stream: DriftStream, seed: int) -> Any:
    from river import compose, neighbors, preprocessing

    numbers = compose.SelectType(Number) | preprocessing.StandardScaler()
    words = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return (numbers + words) | neighbors.KNNClassifier(n_neighbors=5)


#: Short name -> builder of the model for a stream and a seed.
BASELINES: dict[str, Callable[[DriftStream, int], Any]] = {
    "no_change": _no_change,
    "majority": _majority,
    "naive_bayes": _naive_bayes,
    "hoeffding_tree": _hoeffding_tree,
    "arf10": _forest,
    "srp10": _patches,
    "lev_bag10": _leveraging,
    "hat": _adaptive_tree,
    "knn": _neighbours,
    **CAPYMOA,
}
