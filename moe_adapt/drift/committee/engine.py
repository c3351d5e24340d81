r"""The state and the steps of DriftMoE's default: voices weighted by how right they were lately.

Every voice \(v\) gives probabilities \(P_v\) and has odds \(o_v\)
(`moe_adapt.drift.committee.reliability`); the answer is \(\propto \sum_v o_v^3 P_v\). With `router`, a
network that learns which voices are right weighs
along: \(\sum_v o_v^2\, \mathrm{softmax}(z)_v P_v\). The voices see the features alone, never the sequence
of labels: there are streams whose labels run in a cycle, and a learner that reads them has learned the file.

Numbers more than a hundred deviations from the mean count as that far away, for all voices. This is the
plain path; `moe_adapt.drift.compiled` does the same per row in compiled code.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_adapt.drift.committee.layers import Layers, softmax
from moe_adapt.drift.committee.memories import Memories
from moe_adapt.drift.committee.neighbours import Neighbours
from moe_adapt.drift.committee.reliability import Reliability
from moe_adapt.drift.committee.trees import Trees
from moe_adapt.drift.committee.voices import BUILT_IN, DEFAULT, Pending, RiverVoice, make_network, voice_names
from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row
from moe_adapt.drift.hoeffding.growth import TreeOptions
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.parts.experts import Answers, PoolExperts, RiverExperts
from moe_adapt.drift.parts.inputs import NetworkInputs
from moe_adapt.drift.parts.watch import MOST_DRIFTS

if TYPE_CHECKING:
    from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["TREES", "CommitteeEngine", "Seen"]

#: What the committee's trees share.
TREES = TreeOptions(grace_period=50, delta=0.05, tau=0.05)


@dataclass(slots=True)
class Seen:
    """A row and what was made of it before its label was known.

    Attributes:
        x: The features, copied.
        row: In array form.
        raw: Inputs of the networks before scaling [inputs].
        vector: After scaling [inputs].
        answers: Of the trees; None without trees.
        voices: Probabilities of the voices [V, C].
        tree_odds: What the trees' words are worth [E].
        weights: What the voices' words are worth [V], adding up to 1.
        logits: Of the router [V]; None without one.
        proba: The answer [C].
    """

    x: dict[Hashable, Any]
    row: Row
    raw: np.ndarray
    vector: np.ndarray
    answers: Answers | None
    voices: np.ndarray
    tree_odds: np.ndarray
    weights: np.ndarray
    logits: np.ndarray | None
    proba: np.ndarray


class CommitteeEngine:
    """Voices and what they have seen.

    Args:
        options: The classifier, for its settings.
    """

    def __init__(self, options: "DriftMoEClassifier") -> None:
        self.options = options
        self.rng = np.random.default_rng(options.seed)
        self.names = voice_names(options.experts)
        self.features = FeatureTable(options.nominal_attributes or (), canonical=True)
        self.labels = LabelTable()
        self.inputs = NetworkInputs(options.scale_inputs, np.float64)
        self.trees: Any = self._trees() if "trees" in self.names else None
        self.networks: dict[str, Layers] = {
            name: make_network(name, self.rng) for name in ("mlp", "linear") if name in self.names
        }
        if options.router:
            self.networks["router"] = make_network("router", self.rng)
        self.neighbours = Neighbours() if "neighbours" in self.names else None
        self.memories = Memories() if "samknn" in self.names else None
        self.river: list[Any] = [
            None if isinstance(voice, str) else RiverVoice(voice, int(self.rng.integers(2**31)))
            for voice in (DEFAULT if options.experts is None else options.experts)
        ]
        self.pending = Pending(len(self.names))
        self.reliability = Reliability(len(self.names))
        self.chosen = np.zeros(len(self.names), dtype=np.int64)
        self.events = {"rows": 0, "router_steps": 0, "replaced": 0}
        self.drifts: list[tuple[int, int]] = []
        self._seen: Any = None

    def _trees(self) -> Trees:
        options = self.options
        experts: PoolExperts | RiverExperts
        if options.expert is None and options.backend != "river":
            experts = self.make_pool()
        else:
            expert = options.expert
            if expert is None:
                from river.tree import HoeffdingTreeClassifier

                nominal = list(options.nominal_attributes or ()) or None
                expert = HoeffdingTreeClassifier(
                    grace_period=50, delta=0.05, max_share_to_split=1.0, nominal_attributes=nominal
                )
            experts = RiverExperts(options.n_experts, expert, self.rng)
        poisson = 6.0 if options.poisson is None else options.poisson
        return Trees(experts, options.n_experts, options.detector, poisson, self.rng)

    def make_pool(self) -> Any:
        """Return the committee's trees."""
        return PoolExperts(self.options.n_experts, TREES)

    # --- predicting --------------------------------------------------------------------------------------

    def predict(self, x: Mapping[Hashable, Any]) -> np.ndarray:
        """Return the probability of every class [C]; nothing is learned."""
        if not len(self.labels):
            return np.zeros(0)
        return self.look(x, self.features.read(x)).proba

    def look(self, x: Mapping[Hashable, Any], row: Row) -> Seen:
        """Return what the voices make of a row, and keep it for learning."""
        row = replace(row, numbers=self.inputs.bounded(row.numbers))
        raw = self.inputs.raw(row)
        vector = self.inputs.vector(raw)
        answers, tree_odds = None, np.zeros(0)
        voices = np.empty((len(self.names), len(self.labels)))
        for place, name in enumerate(self.names):
            if name == "trees" and self.trees is not None:
                answers, voices[place], tree_odds = self.trees.read(row, x, self.labels)
            elif name == "neighbours" and self.neighbours is not None:
                voices[place] = self.neighbours.proba(vector, len(self.labels))
            elif name == "samknn" and self.memories is not None:
                voices[place] = self.memories.proba(vector, len(self.labels))
            elif name in BUILT_IN:
                voices[place] = softmax(self.networks[name].forward(vector))
            else:
                voices[place] = self.river[place].proba(x, self.labels)
        odds = self.reliability.odds
        logits = self.networks["router"].forward(vector) if self.options.router else None
        weights = odds**3 if logits is None else odds**2 * softmax(logits)
        proba = weights @ voices
        self._seen = Seen(
            dict(x), row, raw, vector, answers, voices, tree_odds, weights / weights.sum(), logits,
            proba / proba.sum(),
        )  # fmt: skip
        return self._seen

    def answer(self, x: Mapping[Hashable, Any]) -> Hashable | None:
        """Return the most probable label, None before any was learned."""
        return self.labels.best(self.predict(x))

    # --- learning ----------------------------------------------------------------------------------------

    def learn(self, x: Mapping[Hashable, Any], label: Hashable, w: float = 1.0) -> None:
        """Learn a row of weight `w` > 0."""
        self.labels.check(label)
        seen = self._seen
        if not (
            seen is not None
            and label in self.labels.number
            and self.features.covers(x, seen.row)
            and seen.x == x
        ):
            before = self._extent
            row = self.features.learn(x)
            self.labels.learn(label)
            if self._extent != before:
                self.fit()
            seen = self.look(x, row)
        self._seen = None
        replaced = self.step(seen, x, label, w)
        if replaced:
            self.drifts += [(self.events["rows"], tree) for tree in replaced]
            del self.drifts[:-MOST_DRIFTS]
            self.events["replaced"] += len(replaced)
        self.events["rows"] += 1

    @property
    def _extent(self) -> tuple[int, ...]:
        """Columns, nominal values and classes that are known."""
        features = self.features
        values = sum(map(len, features.values))
        return len(features.numeric), len(features.nominal), values, len(self.labels)

    def step(self, seen: Seen, x: Mapping[Hashable, Any], label: Hashable, w: float) -> list[int]:
        """Let all voices learn a row; return the trees that were replaced."""
        y = self.labels.number[label]
        right = seen.voices.argmax(axis=1) == y
        self.chosen[seen.weights.argmax()] += 1
        replaced: list[int] = []
        if self.trees is not None and seen.answers is not None:
            replaced = self.trees.learn(seen.row, x, y, label, seen.answers, w)
        mask = right.astype(np.float64)
        if not right.any():
            mask[seen.voices[:, y].argmax()] = 1.0
        if self.networks and self.pending.add(seen.vector, y, w, mask):
            self.train()
        if self.neighbours is not None:
            self.neighbours.add(seen.vector, y, w)
        if self.memories is not None:
            self.memories.add(seen.vector, y, w)
        for voice in self.river:
            if voice is not None:
                voice.learn(x, label, w)
        self.reliability.update(right, w)
        self.inputs.update(seen.raw)
        return replaced

    def train(self) -> None:
        """Let the networks take a step on the rows that wait."""
        pending = self.pending
        hot = np.zeros((pending.count, len(self.labels)))
        hot[np.arange(pending.count), pending.labels] = 1.0
        for name, network in self.networks.items():
            network.step(pending.vectors, pending.masks if name == "router" else hot, pending.weights)
        self.events["router_steps"] += "router" in self.networks
        pending.count = 0

    def fit(self) -> None:
        """Make room for new columns, values and classes everywhere."""
        self.inputs.fit(self.features)
        if self.trees is not None:
            self.trees.fit(self.features, self.labels)
        for name, network in self.networks.items():
            network.grow(self.inputs.n_inputs, len(self.names if name == "router" else self.labels))
        if self.neighbours is not None:
            self.neighbours.grow(self.inputs.n_inputs)
        if self.memories is not None:
            self.memories.grow(self.inputs.n_inputs)
        self.pending.grow(self.inputs.n_inputs)

    def last_seen(self) -> Seen:
        """Return what was made of the row that was looked at last."""
        return self._seen

    def gains(self) -> list[dict[int, float]]:
        """Return what the splits of each present tree gained, by test."""
        experts = None if self.trees is None else self.trees.experts
        return experts.pool.gains if isinstance(experts, PoolExperts) else []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}
