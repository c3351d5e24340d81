r"""DriftMoE for numbers: the voices of the classifier's default as regressors, weighted by recent errors.

The target is standardised by what was seen so far; every voice answers in these units, and the answer is
\(\mu + \sigma \sum_v a_v f_v(x)\) with the shares \(a_v\) of `moe_adapt.drift.committee.regression`.

No paper: the classifier's rules, with squared errors in the place of right and wrong.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from river import base

from moe_adapt.drift.committee.regression import VOICES, RecentErrors, make_voice
from moe_adapt.drift.hoeffding.encoding import LARGEST, FeatureTable, Row, shown
from moe_adapt.drift.hoeffding.labels import check_weight
from moe_adapt.drift.parts.inputs import NetworkInputs
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["DriftMoERegressor"]

#: A target further from the mean, in deviations, counts as that far.
_FAR = 100.0


class DriftMoERegressor(base.Regressor):
    """A mixture of online regressors for streams that drift.

    Args:
        n_experts: Trees of the committee.
        poisson: Mean of the Poisson weight with which a tree learns a row, 0 for weight 1. Higher: trees
            grow sooner.
        detector: Watch every tree's error and replace it when it rises; a drift detector of River watches
            in place of our own.
        experts: The voices: any of ``trees``, ``mlp``, ``linear``, ``neighbours``; None for all.
        nominal_attributes: Names of columns that are nominal although their values are numbers.
        seed: Of weights and draws.

    >>> from river.datasets import TrumpApproval
    >>> model = DriftMoERegressor(n_experts=3, seed=1)
    >>> for x, y in TrumpApproval().take(300):
    ...     model.learn_one(x, y)
    >>> abs(model.predict_one(x) - y) < 2
    True
    """

    def __init__(
        self,
        n_experts: int = 10,
        poisson: float = 6.0,
        detector: bool | base.DriftDetector | base.BinaryDriftDetector = True,
        experts: Sequence[str] | None = None,
        nominal_attributes: Iterable[Hashable] | None = None,
        seed: int | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.poisson = poisson
        self.detector = detector
        self.experts = experts
        self.nominal_attributes = nominal_attributes
        self.seed = seed
        names = _checked(self)
        rng = np.random.default_rng(seed)
        self._features = FeatureTable(nominal_attributes or (), canonical=True)
        self._inputs = NetworkInputs(True, np.float64)
        self._voices = {name: make_voice(name, self, rng) for name in names}
        self._errors = RecentErrors(len(names))
        self._target = [0.0, 0.0, 0.0]  # rows, mean, sum of squared deviations
        self._seen: _Seen | None = None

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"n_experts": 3, "seed": 1}

    @property
    def weights(self) -> dict[str, float]:
        """What each voice counts in the next answer, adding up to 1."""
        return dict(zip(self._voices, self._errors.shares.tolist(), strict=True))

    @property
    def n_drifts_detected(self) -> int:
        """How many trees were replaced."""
        return self._voices["trees"].replaced if "trees" in self._voices else 0

    def predict_one(self, x: dict[Hashable, Any]) -> float:
        """Return the predicted number, 0 before any was learned.

        Args:
            x: Values by feature name.
        """
        if not self._target[0]:
            return 0.0
        found = self._errors.shares @ self._look(x, self._features.read(x)).answers
        return float(self._target[1] + self._deviation * found)

    def learn_one(self, x: dict[Hashable, Any], y: float, w: float = 1.0) -> None:
        """Learn a row.

        Args:
            x: Values by feature name.
            y: The number.
            w: Weight of the row; a row without weight is ignored.

        Raises:
            UserError: If a numeric feature holds text or infinity, the target is no finite number or the
                weight below 0; the model stays as it was.
        """
        check_weight(w)
        target = _number(y)
        if not w:
            return
        seen = self._seen
        if seen is None or not self._features.covers(x, seen.row) or seen.x != x:
            row = self._features.learn(x)
            self._inputs.fit(self._features)
            for voice in self._voices.values():
                voice.fit(self._inputs.n_inputs)
            seen = self._look(x, row)
        self._seen = None
        self._settle(target)
        scaled = (target - self._target[1]) / self._deviation
        scaled = min(max(scaled, -_FAR), _FAR)
        for voice in self._voices.values():
            voice.learn(seen.vector, scaled, w)
        self._errors.update(seen.answers - scaled, w)
        self._inputs.update(seen.raw)

    def _look(self, x: Mapping[Hashable, Any], row: Row) -> "_Seen":
        """Return what the voices say about a row, and keep it for learning."""
        raw = self._inputs.raw(row)
        vector = self._inputs.vector(raw)
        answers = np.clip([voice.answer(vector) for voice in self._voices.values()], -_FAR, _FAR)
        self._seen = _Seen(dict(x), row, raw, vector, answers)
        return self._seen

    @property
    def _deviation(self) -> float:
        rows, _, squares = self._target
        return math.sqrt(squares / rows) if squares > 0 else 1.0

    def _settle(self, target: float) -> None:
        """Let a target move mean and deviation, as one no further than `_FAR` deviations."""
        rows, mean, squares = self._target
        gap = target - mean
        if rows > 30 and squares > 0:
            reach = _FAR * self._deviation
            gap = min(max(gap, -reach), reach)
        rows += 1
        self._target = [rows, mean + gap / rows, squares + gap * gap * (rows - 1) / rows]


@dataclass(slots=True)
class _Seen:
    """A row before its target was known: as it came, unscaled and scaled inputs [D], answers [V]."""

    x: dict[Hashable, Any]
    row: Row
    raw: np.ndarray
    vector: np.ndarray
    answers: np.ndarray


def _number(y: Any) -> float:
    try:
        target = float(y)
    except (TypeError, ValueError, OverflowError):
        target = math.nan
    if isinstance(y, str) or not abs(target) <= LARGEST:
        raise UserError(
            f"the target is a finite number, not {shown(y)}; leave rows without one out of learning."
        )
    return target


def _checked(model: DriftMoERegressor) -> list[str]:
    """Return the names of the voices, or raise a `UserError` for a setting that cannot be."""
    if model.n_experts < 1 or model.poisson < 0:
        raise UserError("n_experts must be at least 1 and poisson not below 0.")
    if model.experts is None:
        return list(VOICES)
    if isinstance(model.experts, str) or not model.experts:
        raise UserError(f"experts is a list of {', '.join(VOICES)}, not {model.experts!r}.")
    names = list(model.experts)
    for name in names:
        if name not in VOICES or names.count(name) > 1:
            known = "" if name in VOICES else did_you_mean(str(name), VOICES)
            raise UserError(f"experts are {', '.join(VOICES)}, each once; got {name!r}.{known}")
    return names
