"""What a model can tell about itself: votes and their weights, its drifts, which columns count."""

from collections.abc import Hashable
from typing import Any

import numpy as np

from moe_adapt.drift.committee.engine import CommitteeEngine
from moe_adapt.drift.parts.experts import PoolExperts

__all__ = ["Insight"]


class Insight:
    """Views of a model for people; the model has an `_engine`."""

    _engine: Any

    @property
    def drift_detected(self) -> bool:
        """Whether an expert was replaced, or alarmed, by the last row that was learned."""
        drifts, rows = self._engine.drifts, self._engine.events["rows"]
        return bool(drifts) and drifts[-1][0] == rows - 1

    @property
    def drifts(self) -> list[tuple[int, int]]:
        """The last thousand drifts: numbers, from 0, of the row and of the expert that was replaced."""
        return list(self._engine.drifts)

    def n_drifts_detected(self, expert: int | None = None) -> int:
        """Return how many drifts were found, by all experts or by one of the last thousand."""
        if expert is None:
            return self._engine.events["replaced"]
        return sum(found == expert for _, found in self._engine.drifts)

    @property
    def feature_importances(self) -> dict[Hashable, float]:
        """Share of each column in the information that the splits of the present trees gained.

        Empty before the first split, and with experts of River.
        """
        engine = self._engine
        features = engine.features
        numeric, nominal = _gains(engine)
        total = sum(numeric) + sum(nominal)
        if total <= 0:
            return {}
        found = {name: numeric[column] / total for name, column in features.numeric.items()}
        return found | {name: nominal[column] / total for name, column in features.nominal.items()}

    def explain_one(self, x: dict[Hashable, Any]) -> dict[str, Any]:
        """Return who says what about a row, and with which weight.

        Args:
            x: Values by feature name.

        Returns:
            ``answer``, ``probabilities``, and ``voices``: for each its weight in the answer, its accuracy
            over the last few hundred rows, its own answer and probabilities. The committee of trees has
            ``members``. Empty before the first label.
        """
        engine = self._engine
        if not len(engine.labels):
            return {}
        labels = engine.labels
        proba = engine.predict(x)
        seen = engine.last_seen()
        engine._seen = None
        found: dict[str, Any] = {"answer": labels.best(proba), "probabilities": labels.named(proba)}
        if not isinstance(engine, CommitteeEngine):
            weights = _softmax(seen.logits / engine.options.temperature)
            names = [f"expert {place}" for place in range(len(weights))]
            answers = seen.answers.proba if not engine.task else np.zeros((0, 0))
            found["voices"] = {
                name: {
                    "weight": float(weight),
                    **({"answer": labels.best(own), "probabilities": labels.named(own)} if len(own) else {}),
                }
                for name, weight, own in zip(
                    names, weights, answers if len(answers) else [[]] * len(names), strict=True
                )
            }
            return found
        accuracy = engine.reliability.accuracy
        found["voices"] = {
            name: {
                "weight": float(seen.weights[place]),
                "accuracy": float(accuracy[place]),
                "answer": labels.best(seen.voices[place]),
                "probabilities": labels.named(seen.voices[place]),
            }
            for place, name in enumerate(engine.names)
        }
        if engine.trees is not None:
            share = seen.tree_odds / seen.tree_odds.sum()
            found["voices"]["trees"]["members"] = [
                {"weight": float(w), "accuracy": float(a), "answer": labels.best(own)}
                for w, a, own in zip(
                    share, engine.trees.reliability.accuracy, seen.answers.proba, strict=True
                )
            ]
        return found

    def debug_one(self, x: dict[Hashable, Any]) -> str:
        """Return the same as a table for people.

        Args:
            x: Values by feature name.
        """
        found = self.explain_one(x)
        if not found:
            return "no label was learned yet"
        lines = [f"answer {found['answer']!r} ({max(found['probabilities'].values()):.1%})"]
        for name, voice in found["voices"].items():
            line = f"  {name:<12} weight {voice['weight']:6.1%}"
            if "accuracy" in voice:
                line += f"  lately right {voice['accuracy']:6.1%}"
            if "answer" in voice:
                line += f"  says {voice['answer']!r} ({max(voice['probabilities'].values()):.1%})"
            lines.append(line)
            lines += [
                f"    tree {number:<6} weight {one['weight']:6.1%}  lately right {one['accuracy']:6.1%}"
                f"  says {one['answer']!r}"
                for number, one in enumerate(voice.get("members", ()))
            ]
        return "\n".join(lines)


def _softmax(values: np.ndarray) -> np.ndarray:
    found = np.exp(values - values.max())
    return found / found.sum()


def _gains(engine: Any) -> tuple[list[float], list[float]]:
    """Return the gain of every numeric and every nominal column over the present trees."""
    numeric = [0.0] * len(engine.features.numeric)
    nominal = [0.0] * len(engine.features.nominal)
    if isinstance(engine, CommitteeEngine):
        gains = engine.gains()
    else:
        gains = engine.trees.pool.gains if isinstance(engine.trees, PoolExperts) else []
    for own in gains:
        for test, gain in own.items():
            if test >= 0:
                numeric[test] += gain
            else:
                nominal[-2 - test] += gain
    return numeric, nominal
