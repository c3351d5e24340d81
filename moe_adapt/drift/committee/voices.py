"""The voices beside the committee of trees: networks, nearest rows, and any River classifier."""

import inspect
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from river import base

from moe_adapt.drift.committee.layers import Layers
from moe_adapt.drift.hoeffding.encoding import present
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.parts.experts import known_proba, many_classes
from moe_adapt.errors import UserError, did_you_mean

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "PLAIN",
    "STEP_EVERY",
    "Pending",
    "RiverVoice",
    "make_network",
    "voice_names",
]

#: Short name -> what it is.
BUILT_IN = {
    "trees": "a committee of Hoeffding trees",
    "mlp": "a network with two hidden layers",
    "linear": "a linear softmax model",
    "neighbours": "the nearest of the last 500 and 1,000 rows, by the columns that matter",
    "samknn": "the nearest rows of a short and a long memory",
}
DEFAULT = ("trees", "mlp", "linear", "neighbours")
#: Voices that the compiled row path does not have.
PLAIN = ("samknn",)
#: Rows per step of the networks.
STEP_EVERY = 4
_NETWORKS: dict[str, tuple[tuple[int, ...], float, str]] = {
    "mlp": ((128, 64), 5e-3, "softmax"),
    "linear": ((), 1e-2, "softmax"),
    "router": ((64, 32), 2e-3, "bce"),
}


def make_network(name: str, rng: np.random.Generator) -> Layers:
    """Return the network of a voice, or the router."""
    hidden, lr, loss = _NETWORKS[name]
    return Layers(hidden, lr, loss, rng)


def voice_names(experts: Any) -> list[str]:
    """Return a name for every voice, unique.

    Raises:
        UserError: If one is neither a known name nor a classifier of River.
    """
    if experts is not None and not isinstance(experts, (list, tuple)):
        raise UserError(f"experts is a list of voices, not {experts!r}.")
    names: list[str] = []
    for voice in DEFAULT if experts is None else experts:
        if isinstance(voice, str):
            if voice not in BUILT_IN:
                raise UserError(
                    f"there is no voice {voice!r}.{did_you_mean(voice, BUILT_IN)} Known: "
                    f"{', '.join(BUILT_IN)}, and any classifier of River."
                )
            if voice in names:
                raise UserError(f"the voice {voice!r} is listed twice.")
            names.append(voice)
        elif isinstance(voice, base.Classifier) or hasattr(voice, "predict_proba_one"):
            name, count = type(voice).__name__, 2
            while name in names:
                name, count = f"{type(voice).__name__} {count}", count + 1
            names.append(name)
        else:
            raise UserError(f"a voice is a name or a classifier of River, not {type(voice).__name__!r}.")
    if not names:
        raise UserError(f"experts is empty; leave it out for {', '.join(DEFAULT)}.")
    return names


class Pending:
    """Rows that wait for the step of the networks.

    Attributes:
        vectors: Inputs [STEP_EVERY, inputs].
        labels: Class numbers [STEP_EVERY].
        weights: Of the rows [STEP_EVERY].
        masks: Which voices were right [STEP_EVERY, voices].
        count: How many wait.
    """

    def __init__(self, voices: int) -> None:
        self.vectors = np.zeros((STEP_EVERY, 0))
        self.labels = np.zeros(STEP_EVERY, dtype=np.int64)
        self.weights = np.zeros(STEP_EVERY)
        self.masks = np.zeros((STEP_EVERY, voices))
        self.count = 0

    def grow(self, n_inputs: int) -> None:
        """Make room for more inputs."""
        if n_inputs > self.vectors.shape[1]:
            more = np.zeros((STEP_EVERY, n_inputs - self.vectors.shape[1]))
            self.vectors = np.concatenate([self.vectors, more], axis=1)

    def add(self, vector: np.ndarray, y: int, w: float, mask: np.ndarray) -> bool:
        """Keep a row; return whether it is time for a step."""
        at = self.count
        self.vectors[at], self.labels[at], self.weights[at], self.masks[at] = vector, y, w, mask
        self.count += 1
        return self.count == STEP_EVERY


class RiverVoice:
    """A classifier of River among the voices.

    Args:
        prototype: What it is a clone of.
        seed: For a classifier that takes one.
    """

    def __init__(self, prototype: base.Classifier, seed: int) -> None:
        options = {"seed": seed} if "seed" in prototype._get_params() else {}
        self.model = many_classes(prototype.clone(options))
        self.weighted = "w" in inspect.signature(self.model.learn_one).parameters

    def proba(self, x: Mapping[Hashable, Any], labels: LabelTable) -> np.ndarray:
        """Return probabilities [C], uniform as long as it knows nothing."""
        found = known_proba(self.model, x, labels)
        total = found.sum()
        return found / total if total > 0 else np.full(len(found), 1.0 / len(found))

    def learn(self, x: Mapping[Hashable, Any], label: Hashable, w: float) -> None:
        """Learn a row; where the classifier takes no weight, a whole one is learned that many times."""
        x = present(x)
        if self.weighted:
            self.model.learn_one(x, label, w=w)  # type: ignore[call-arg, arg-type]
            return
        for _ in range(max(round(w), 1)):
            self.model.learn_one(x, label)  # type: ignore[arg-type]
