"""Learners of CapyMOA (MOA, in Java) in the same comparison, through its Python objects.

They differ from River's of the same names: on CoverType CapyMOA's forests are clearly stronger. MOA wants
every label and every nominal value before the first row, so a stream is read once beforehand; no other
learner is told as much. Needs ``pip install 'moe-adapt[capymoa]'`` and a Java runtime.
"""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.errors import UserError

__all__ = ["CAPYMOA", "CapyMoaLearner"]

_LABEL = "label of the row"


class CapyMoaLearner:
    """A learner of CapyMOA with River's two methods.

    Args:
        stream: What it will learn.
        make: Returns the learner for a schema.
    """

    def __init__(self, stream: DriftStream, make: Callable[[Any], Any]) -> None:
        schema_class, self._instance, self._labeled = _classes()
        values: dict[str, set[Any]] = {name: set() for name in stream.features if name in stream.nominal}
        labels: dict[Hashable, int] = {}
        for x, y in stream:
            labels.setdefault(y, len(labels))
            for name, seen in values.items():
                if name in x:
                    seen.add(x[name])
        self.features = stream.features
        self.labels, self.numbers = list(labels), labels
        self.codes = {
            name: {value: code for code, value in enumerate(sorted(seen, key=str))}
            for name, seen in values.items()
        }
        words = {name: [str(value) for value in known] for name, known in self.codes.items()}
        words[_LABEL] = [str(number) for number in range(len(labels))]
        self.schema = schema_class.from_custom([*stream.features, _LABEL], _LABEL, words)
        self.learner = make(self.schema)

    def _array(self, x: dict[str, Any]) -> np.ndarray:
        row = []
        for name in self.features:
            value = x.get(name)
            if value is None:
                row.append(np.nan)
            else:
                row.append(float(self.codes[name][value] if name in self.codes else value))
        return np.array(row)

    def predict_one(self, x: dict[str, Any]) -> Hashable | None:
        """Return the predicted label, None for no answer."""
        place = self.learner.predict(self._instance.from_array(self.schema, self._array(x)))
        return self.labels[place] if place is not None and 0 <= place < len(self.labels) else None

    def learn_one(self, x: dict[str, Any], y: Hashable) -> None:
        """Learn a row."""
        self.learner.train(self._labeled.from_array(self.schema, self._array(x), self.numbers[y]))


def _classes() -> tuple[Any, Any, Any]:
    try:
        from capymoa.core import Instance, LabeledInstance
        from capymoa.stream import Schema
    except ImportError as problem:
        raise UserError(f"{problem}: pip install 'moe-adapt[capymoa]'.") from problem
    except Exception as problem:  # JPype has errors of its own for a Java runtime that is not there
        raise UserError(f"CapyMOA needs a Java runtime: {str(problem).splitlines()[0]}") from problem
    return Schema, Instance, LabeledInstance


def _builder(name: str, **options: Any) -> Callable[[DriftStream, int], Any]:
    def build(stream: DriftStream, seed: int) -> CapyMoaLearner:
        def make(schema: Any) -> Any:
            import capymoa.classifier

            kind = getattr(capymoa.classifier, name)
            return kind(schema, random_seed=seed, **options)

        return CapyMoaLearner(stream, make)

    return build


#: Short name -> builder of the learner for a stream and a seed; ten trees where there are trees.
CAPYMOA: dict[str, Callable[[DriftStream, int], Any]] = {
    "capymoa_arf10": _builder("AdaptiveRandomForestClassifier", ensemble_size=10),
    "capymoa_srp10": _builder("StreamingRandomPatches", ensemble_size=10),
    "capymoa_lev_bag10": _builder("LeveragingBagging", ensemble_size=10),
    "capymoa_samknn": _builder("SAMkNN"),
    "capymoa_sgbt": _builder("StreamingGradientBoostedTrees"),
}
