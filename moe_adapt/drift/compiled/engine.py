"""DriftMoE's committee with a compiled row path.

State lives in the same objects as in `CommitteeEngine`, only the trees in arrays of their own; what changes once in a
while (new columns, new classes, replaced trees, weights to draw) happens in Python, what happens for every row in
`moe_adapt.drift.compiled.row`. Both paths agree to rounding (tests); where two splits or two classes tie to the
last bit they may part.
"""

from array import array
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_adapt.drift.committee.engine import TREES, CommitteeEngine, Seen
from moe_adapt.drift.committee.neighbours import WINDOW
from moe_adapt.drift.committee.voices import STEP_EVERY, make_network
from moe_adapt.drift.compiled.layout import SLOT, CompiledForest
from moe_adapt.drift.driftmoe.experts import Answers
from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row, ordered
from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool
from moe_adapt.drift.hoeffding.labels import LabelTable

__all__ = ["CompiledEngine", "CompiledExperts"]

_NO_NUMBERS, _NO_CODES = np.zeros(0), np.zeros(0, dtype=np.int64)


class CompiledExperts:
    """Trees in compiled arrays, as `Trees` wants its experts.

    Args:
        n_experts: How many.
    """

    def __init__(self, n_experts: int) -> None:
        self.forest = CompiledForest(n_experts, TREES)
        self.planted = False

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Make room for new columns, values and classes."""
        forest = self.forest
        forest.resize(len(labels), len(features.numeric), len(features.nominal), features.n_values)
        if not self.planted:
            self.planted = True
            for tree in range(forest.n_trees):
                self.reset(tree)

    def reset(self, expert: int) -> None:
        """Put an empty tree in the place of an expert."""
        from moe_adapt.drift.compiled.grow import replace_tree

        f = self.forest
        f.spare(1)
        replace_tree(
            expert, f.nodes, f.threshold, f.trees, f.free_nodes, f.free_slots, f.leaf, f.marks, f.weights,
            f.gauss, f.moments, f.table, f.whole, f.gains,
        )  # fmt: skip

    @property
    def pool(self) -> FastHoeffdingTreePool:
        """The same trees in the form in which models are kept."""
        return self.forest.pool() if self.planted else FastHoeffdingTreePool(self.forest.n_trees, TREES)


@dataclass(slots=True)
class _Looked:
    x: dict[Hashable, Any]
    row: Row
    proba: np.ndarray


class CompiledEngine(CommitteeEngine):
    """The committee, row by row in machine code.

    Args:
        options: The classifier, for its settings.
    """

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._prepare()

    def make_pool(self) -> Any:
        """Return the committee's trees."""
        return CompiledExperts(self.options.n_experts)

    def fit(self) -> None:
        """Make room for new columns, values and classes everywhere."""
        super().fit()
        self._prepare()

    def _prepare(self) -> None:
        """Lay out what the compiled functions are called with."""
        n_classes, n_voices, inputs = len(self.labels), len(self.names), self.inputs
        count = 0 if self.trees is None else self.trees.count
        shape = (len(self.features.nominal), max(self.features.n_values, 1))
        self._code_place = np.zeros(shape, dtype=np.int64)
        self._code_value = np.zeros(shape)
        for column, (numbers, places) in enumerate(inputs.columns):
            self._code_place[column, : len(places)] = places
            self._code_value[column, : len(numbers)] = numbers
        self._value_order = np.zeros(self._code_place.shape, dtype=np.int64)
        for column, known in enumerate(self.features.values):
            order = list(ordered(known).values())
            self._value_order[column] = [*order, *range(len(order), self._value_order.shape[1])]
        self._class_order = np.array(self.labels.sorted, dtype=np.int64)
        self._scaled = inputs.scaled if inputs.scale else np.zeros(0)
        n_numeric = len(self.features.numeric)
        self._row = np.zeros(n_numeric), np.zeros(inputs.n_inputs), np.zeros(inputs.n_inputs)
        self._found = np.zeros((count, 2), dtype=np.int64)
        self._scores, self._tree_proba = np.zeros((count, n_classes)), np.zeros((count, n_classes))
        self._tree_odds, self._tree_wrong = np.zeros(count), np.zeros(count)
        self._short, self._alarms = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._voices = np.zeros((n_voices, n_classes))
        self._voice_weights, self._voice_wrong = np.zeros(n_voices), np.zeros(n_voices)
        self._logits, self._proba = np.zeros(n_voices), np.zeros(n_classes)
        self._scratch = np.zeros((4, max(WINDOW, n_classes)))
        places = [self.names.index(name) if name in self.names else -1 for name in _VOICES]
        self._voice_at = np.array([*places, 0 if "router" in self.networks else -1], dtype=np.int64)
        self._empty = {name: make_network(name, np.random.default_rng(0)) for name in ("mlp", "linear", "router")}
        self._idle = _Idle() if self.neighbours is None else self.neighbours
        self._forest = CompiledForest(0, TREES) if self.trees is None else self.trees.experts.forest
        self._arguments()

    def _arguments(self) -> None:
        f, inputs, idle, trees = self._forest, self.inputs, self._idle, self.trees
        networks = {**self._empty, **self.networks}
        tree_sums = np.ones((2, 0)) if trees is None else trees.reliability.sums
        watch = np.zeros((2, 0)) if trees is None else (trees.watch.rows, trees.watch.errors)
        numeric, nominal = (
            (np.zeros((0, 0), dtype=bool),) * 2 if trees is None else (trees.numeric, trees.nominal)
        )
        sizes = {name: np.array(net.sizes, dtype=np.int64) for name, net in networks.items()}
        self._look_with = (
            self._voice_at, inputs.numeric.astype(np.int64), self._code_place, self._code_value, inputs.mean,
            inputs.squares, self._scaled, *self._row, f.nodes, f.threshold, f.trees, f.leaf, f.marks, f.weights,
            f.gauss, f.table, f.whole, tree_sums, self._found, self._scores, self._tree_proba, self._tree_odds,
            networks["mlp"].values, sizes["mlp"], networks["linear"].values, networks["router"].values,
            sizes["router"], idle.rows, idle.labels, idle.weights, self._scratch, self.reliability.sums,
            self._voices, self._voice_weights, self._logits, self._proba,
        )  # fmt: skip
        self._tree_with = (
            self._row[0], self._found, self._scores, len(self.labels), self._class_order, self._value_order, f.settings, self._short,
            f.nodes, f.threshold, f.trees, f.free_nodes, f.free_slots, f.leaf, f.marks, f.classes, f.weights,
            f.gauss, f.moments, f.table, f.whole, f.gains, numeric, nominal,
        )  # fmt: skip
        pending = self.pending
        self._rest_with = (
            self._voices, self.reliability.sums, self._voice_wrong, self._tree_proba, tree_sums,
            self._tree_wrong, *watch, pending.vectors, pending.labels, pending.weights, pending.masks, idle.rows,
            idle.labels, idle.weights, *self._row[1:], inputs.mean, inputs.squares, self._scaled,
        )  # fmt: skip

    def look(self, x: Mapping[Hashable, Any], row: Row) -> Any:
        """Let the voices look at a row, and keep the answer for learning."""
        codes = np.frombuffer(array("q", row.codes), dtype=np.int64) if row.codes else _NO_CODES
        seen = 0 if self.neighbours is None else self.neighbours.seen
        _row().look(row.numbers, codes, len(self.labels), self.inputs.count, seen, *self._look_with)
        self._codes = codes
        self._seen = _Looked(dict(x), row, self._proba)
        return self._seen

    def step(self, seen: Any, x: Mapping[Hashable, Any], label: Hashable, w: float) -> list[int]:
        """Let all voices learn a row; return the trees that were replaced."""
        y, compiled, n_classes = self.labels.number[label], _row(), len(self.labels)
        self.chosen[self._voice_weights.argmax()] += 1
        trees = self.trees
        if trees is not None:
            wanted = compiled.learn_trees(y, w, trees.next_draws(), self._codes, *self._tree_with)
            if wanted:
                self._split_again()
            elif self._forest.free_slots[0] < trees.count or self._forest.free_nodes[0] < trees.count:
                self._forest.spare(trees.count)
                self._arguments()
        inputs, ring, pending = self.inputs, self.neighbours, self.pending
        inputs.count += inputs.scale
        waiting = pending.count if self.networks else -1
        place = -1 if ring is None else ring.seen % WINDOW
        compiled.learn_rest(y, w, n_classes, waiting, place, inputs.count, *self._rest_with)
        inputs._inverse = None
        if ring is not None:
            ring.seen += 1
        if self.networks:
            pending.count += 1
            if pending.count == STEP_EVERY:
                self.train()
        return self._watch() if trees is not None and trees.watching else []

    def _split_again(self) -> None:
        """Make room for the splits that found none, and let them happen."""
        from moe_adapt.drift.compiled.grow import split_again

        f, trees = self._forest, self.trees
        assert trees is not None
        for tree, node in enumerate(self._short.tolist()):
            lacking = 1
            while node >= 0 and lacking:
                lacking = split_again(
                    tree, node, len(self.labels), self._class_order, self._value_order, f.settings, f.nodes, f.threshold, f.trees,
                    f.free_nodes, f.free_slots, f.leaf, f.marks, f.classes, f.weights, f.gauss, f.moments,
                    f.table, f.whole, f.gains, trees.numeric[tree], trees.nominal[tree],
                )  # fmt: skip
                f.spare(lacking + trees.count)
        f.spare(trees.count)
        self._arguments()

    def _watch(self) -> list[int]:
        watch, trees = self.trees.watch, self.trees  # type: ignore[union-attr]
        watch.waiting += 1
        if watch.waiting < watch.every:
            return []
        watch.waiting = 0
        best = watch.best_rows, watch.best_errors
        if not _row().watch_test(watch.rows, watch.errors, *best, watch.delta, self._alarms):
            return []
        alarmed = np.flatnonzero(self._alarms).tolist()
        for tree in alarmed:
            trees.experts.reset(tree)  # type: ignore[union-attr]
            trees.renew(tree)  # type: ignore[union-attr]
        self._arguments()
        return alarmed

    def train(self) -> None:
        """Let the networks take a step on the rows that wait."""
        from moe_adapt.drift.compiled.networks import linear_step, step

        p = self.pending
        for name, network in self.networks.items():
            network.steps += 1
            rest = p.vectors, p.labels, p.weights, p.masks
            if len(network.sizes) == 2:
                linear_step(network.values, *network.sizes, *rest, network.lr, network.steps)
            else:
                step(network.values, *network.sizes, *rest, name == "router", network.lr, network.steps)
        self.events["router_steps"] += "router" in self.networks
        p.count = 0

    def last_seen(self) -> Seen:
        """Return what was made of the row that was looked at last."""
        answers = None if self.trees is None else Answers(self._tree_proba, None)
        row, (_, raw, vector) = self._seen.row, self._row
        return Seen(
            self._seen.x, row, raw, vector, answers, self._voices, self._tree_odds, self._voice_weights,
            self._logits if "router" in self.networks else None, self._proba,
        )  # fmt: skip

    def gains(self) -> list[dict[int, float]]:
        """Return what the splits of each present tree gained, by test."""
        return self._forest.gain_tables()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
        return {**own, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


class _Idle:
    """Stands for the ring where there is none."""

    rows, labels, weights = np.zeros((0, WINDOW)), np.zeros(WINDOW, dtype=np.int64), np.zeros(WINDOW)


_VOICES = ("trees", "mlp", "linear", "neighbours")
_DERIVED = {
    "_code_place", "_code_value", "_class_order", "_value_order", "_scaled", "_row", "_found", "_scores", "_tree_proba",
    "_tree_odds", "_tree_wrong", "_short", "_alarms", "_voices", "_voice_weights", "_voice_wrong", "_logits",
    "_proba", "_scratch", "_voice_at", "_empty", "_idle", "_forest", "_look_with", "_tree_with", "_rest_with",
    "_codes",
}  # fmt: skip


def _row() -> Any:
    """Return the compiled functions; numba is imported with the first row, not with the package."""
    global _compiled
    if _compiled is None:
        from moe_adapt.drift.compiled import row

        _compiled = row
    return _compiled


_compiled: Any = None
