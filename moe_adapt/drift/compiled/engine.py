"""DriftMoE's committee with a compiled row path.

State lives in the same objects as in `CommitteeEngine`, only the trees in arrays of their own; what changes
once in a while (new columns, new classes, replaced trees, weights to draw) happens in Python, what happens
for every row in `moe_adapt.drift.compiled.row`. Both paths agree to rounding (tests); where two splits or
two classes tie to the last bit they may part.
"""

from array import array
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_adapt.drift.committee.engine import TREES, CommitteeEngine, Seen
from moe_adapt.drift.committee.neighbours import NEAREST, WINDOW, Neighbours
from moe_adapt.drift.committee.voices import STEP_EVERY, make_network
from moe_adapt.drift.compiled.layout import CompiledForest
from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row, ordered
from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.parts.experts import Answers
from moe_adapt.drift.parts.watch import ErrorWatch

__all__ = ["CompiledEngine", "CompiledExperts"]

_NO_NUMBERS, _NO_CODES = np.zeros(0), np.zeros(0, dtype=np.int64)


class CompiledExperts:
    """Trees in compiled arrays, as `Trees` wants its experts.

    Args:
        n_experts: How many.

    Attributes:
        table: Returns the engine's table of arrays, renewed.
    """

    def __init__(self, n_experts: int) -> None:
        self.forest = CompiledForest(n_experts, TREES)
        self.planted = False
        self.table: Any = None

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Make room for new columns, values and classes."""
        forest = self.forest
        forest.resize(len(labels), len(features.numeric), len(features.nominal), features.n_values)

    def plant(self, pool: FastHoeffdingTreePool | None = None) -> None:
        """Take over the trees of a pool, or begin with empty ones."""
        if pool is not None:
            if pool.store.n_classes:
                self.forest.take(pool)
                self.planted = True
            return
        self.planted = True
        for tree in range(self.forest.n_trees):
            self.reset(tree)

    def reset(self, expert: int) -> None:
        """Put an empty tree in the place of an expert."""
        self.forest.spare(1)
        _row().renew_tree(expert, self.table())

    @property
    def pool(self) -> FastHoeffdingTreePool:
        """The same trees in the form in which models are kept."""
        return self.forest.pool() if self.planted else FastHoeffdingTreePool(self.forest.n_trees, TREES)


@dataclass(slots=True)
class _Looked:
    x: dict[Hashable, Any]
    row: Row
    proba: np.ndarray
    place: int


class CompiledEngine(CommitteeEngine):
    """The committee, row by row in machine code.

    Args:
        options: The classifier, for its settings.
    """

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
        self._forest = CompiledForest(0, TREES) if self.trees is None else self.trees.experts.forest
        n_numeric = len(self.features.numeric)
        kinds = {
            "bounded": n_numeric,
            "raw": inputs.n_inputs,
            "vector": inputs.n_inputs,
            "scores": (count, n_classes),
            "tree_proba": (count, n_classes),
            "tree_odds": count,
            "tree_wrong": count,
            "voices": (n_voices, n_classes),
            "voice_weights": n_voices,
            "voice_wrong": n_voices,
            "logits": n_voices,
            "proba": n_classes,
            "near_answers": (2, n_classes),
            "near_wrong": 2,
            "scratch": (3, max(_WIDEST, n_classes)),
        }
        self._own = {name: np.zeros(shape) for name, shape in kinds.items()}
        self._own["near_squares"] = np.zeros(WINDOW, dtype=np.float32)
        whole = {
            "found": (count, 2),
            "short": count,
            "alarms": count,
            "codes": len(self.features.nominal),
            "near": NEAREST,
        }
        self._own |= {name: np.zeros(shape, dtype=np.int64) for name, shape in whole.items()}
        places = [self.names.index(name) if name in self.names else -1 for name in _VOICES]
        self._own["voice_at"] = np.array([*places, 0 if "router" in self.networks else -1], dtype=np.int64)
        self._own["places"] = inputs.numeric.astype(np.int64)
        self._own["scaled"] = inputs.scaled if inputs.scale else np.zeros(0)
        self._own |= self._orders()
        networks = [self.networks.get(name) or _UNUSED[name] for name in _UNUSED]
        self._own["rates"] = np.array([network.lr for network in networks])
        for name, network in zip(_UNUSED, networks, strict=True):
            self._own[f"{name}_sizes"] = np.array(network.sizes, dtype=np.int64)
        del self._own["linear_sizes"]
        self._block: Any = None
        self._table = self._addresses()
        if self.trees is not None:
            self.trees.experts.table = self._addresses
            if not self.trees.experts.planted and n_classes:
                self.trees.experts.plant()

    def _orders(self) -> dict[str, np.ndarray]:
        """Return where nominal values go among the inputs, and the order of values and classes."""
        shape = (len(self.features.nominal), max(self.features.n_values, 1))
        place, order = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        value = np.zeros(shape)
        for column, (numbers, places) in enumerate(self.inputs.columns):
            place[column, : len(places)], value[column, : len(numbers)] = places, numbers
            known = list(ordered(self.features.values[column]).values())
            order[column] = [*known, *range(len(known), shape[1])]
        classes = np.array(self.labels.sorted, dtype=np.int64)
        return {"code_place": place, "code_value": value, "value_order": order, "class_order": classes}

    def _addresses(self) -> np.ndarray:
        """Return the table of all arrays, renewed after some were replaced."""
        forest, trees, inputs, pending = self._forest, self.trees, self.inputs, self.pending
        ring = _UNUSED_RING if self.neighbours is None else self.neighbours
        networks = {name: (self.networks.get(name) or _UNUSED[name]).values for name in _UNUSED}
        watch = _UNUSED_WATCH if trees is None else trees.watch
        masks = np.zeros((0, 0), dtype=bool)
        own = {
            **{name: getattr(forest, name) for name in _FOREST},
            **networks,
            "numeric": masks if trees is None else trees.numeric,
            "nominal": masks if trees is None else trees.nominal,
            "tree_sums": np.ones((2, 0)) if trees is None else trees.reliability.sums,
            "watch_rows": watch.rows,
            "watch_errors": watch.errors,
            "best_rows": watch.best_rows,
            "best_errors": watch.best_errors,
            "mean": inputs.mean,
            "squares": inputs.squares,
            "rows": ring.rows,
            "row_labels": ring.labels,
            "row_weights": ring.weights,
            "relevance": ring.relevance,
            "gaps": ring.gaps,
            "near_sums": ring.reliability.sums,
            "voice_sums": self.reliability.sums,
            "chosen": self.chosen,
            "pending": pending.vectors,
            "pending_labels": pending.labels,
            "pending_weights": pending.weights,
            "pending_masks": pending.masks,
        }
        if self._block is None:
            from moe_adapt.drift.compiled.block import Block

            self._block = Block({**self._own, **own})
        else:
            self._block.renew({**self._own, **own})
        return self._block.table

    def look(self, x: Mapping[Hashable, Any], row: Row) -> Any:
        """Let the voices look at a row, and keep the answer for learning."""
        codes = np.frombuffer(array("q", row.codes), dtype=np.int64) if row.codes else _NO_CODES
        seen = 0 if self.neighbours is None else self.neighbours.seen
        place = _row().look(row.numbers, codes, len(self.labels), self.inputs.count, seen, self._table)
        self._seen = _Looked(dict(x), row, self._own["proba"], place)
        return self._seen

    def answer(self, x: Mapping[Hashable, Any]) -> Hashable | None:
        """Return the most probable label, None before any was learned."""
        labels = self.labels.labels
        return labels[self.look(x, self.features.read(x)).place] if labels else None

    def step(self, seen: Any, x: Mapping[Hashable, Any], label: Hashable, w: float) -> list[int]:
        """Let all voices learn a row; return the trees that were replaced."""
        trees, inputs, ring, pending = self.trees, self.inputs, self.neighbours, self.pending
        y, n_classes = self.labels.number[label], len(self.labels)
        draws = _NO_NUMBERS if trees is None else trees.next_draws()
        inputs.count += inputs.scale
        waiting = pending.count if self.networks else -1
        seen_rows = -1 if ring is None else ring.seen
        if _row().learn(y, float(w), draws, n_classes, waiting, seen_rows, inputs.count, self._table):
            self._split_again()
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
        count = len(self._own["short"])
        for tree, node in enumerate(self._own["short"].tolist()):
            lacking = 1
            while node >= 0 and lacking:
                lacking = _row().split_again(tree, node, len(self.labels), self._table)
                if lacking:
                    self._forest.spare(lacking + count)
                    self._addresses()
        self._forest.spare(count)
        self._addresses()

    def _watch(self) -> list[int]:
        watch, trees = self.trees.watch, self.trees
        watch.waiting += 1
        if watch.waiting < watch.every:
            return []
        watch.waiting = 0
        if not _row().watch(watch.delta, self._table):
            return []
        alarmed = np.flatnonzero(self._own["alarms"]).tolist()
        for tree in alarmed:
            trees.experts.reset(tree)
            trees.renew(tree)
        return alarmed

    def train(self) -> None:
        """Let the networks take a step on the rows that wait."""
        for network in self.networks.values():
            network.steps += 1
        steps = [self.networks[name].steps if name in self.networks else 0 for name in _UNUSED]
        _row().train(len(self.labels), *steps, self._table)
        self.events["router_steps"] += "router" in self.networks
        self.pending.count = 0

    def last_seen(self) -> Seen:
        """Return what was made of the row that was looked at last."""
        own = self._own
        answers = None if self.trees is None else Answers(own["tree_proba"], None)
        logits = own["logits"] if "router" in self.networks else None
        return Seen(
            self._seen.x, self._seen.row, own["raw"], own["vector"], answers, own["voices"], own["tree_odds"],
            own["voice_weights"], logits, own["proba"],
        )  # fmt: skip

    def gains(self) -> list[dict[int, float]]:
        """Return what the splits of each present tree gained, by test."""
        return self._forest.gain_tables()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
        return {**own, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if len(self.labels):
            self._prepare()


_VOICES = ("trees", "mlp", "linear", "neighbours")
_UNUSED = {name: make_network(name, np.random.default_rng(0)) for name in ("mlp", "linear", "router")}
_UNUSED_RING, _UNUSED_WATCH = Neighbours(), ErrorWatch(0)
_WIDEST = max(size for network in _UNUSED.values() for size in network.sizes)
_FOREST = (
    "nodes", "threshold", "trees", "free_nodes", "free_slots", *CompiledForest.SLOTTED, "gains", "settings",
)  # fmt: skip
_DERIVED = ("_own", "_table", "_block", "_forest")


def _row() -> Any:
    """Return the compiled functions; numba is imported with the first row, not with the package."""
    global _compiled
    if _compiled is None:
        from moe_adapt.drift.compiled import row

        _compiled = row
    return _compiled


_compiled: Any = None
