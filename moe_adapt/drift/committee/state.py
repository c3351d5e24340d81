"""A committee in the middle of a stream as arrays and JSON types, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_adapt.drift.committee.engine import TREES, CommitteeEngine
from moe_adapt.drift.committee.memories import LEVELS, MOST
from moe_adapt.drift.committee.neighbours import WINDOW, Neighbours, relevance_of
from moe_adapt.drift.committee.voices import STEP_EVERY
from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool
from moe_adapt.drift.parts.kept import (
    check_shapes,
    pool_arrays,
    pool_state,
    restore_pool,
    restore_tables,
)
from moe_adapt.errors import UserError

__all__ = ["committee_arrays", "committee_state", "restore_committee"]

#: Rows of the ring before columns had a relevance.
FORMER_WINDOW = 500
_RING = ("rows", "labels", "weights", "gaps")
#: Parameters and moments of a network stay far below this.
LARGEST = 1e30


def committee_state(engine: CommitteeEngine) -> dict[str, Any]:
    """Return what is neither in the tables nor an array."""
    found: dict[str, Any] = {
        "voices": engine.names,
        "steps": {name: network.steps for name, network in engine.networks.items()},
        "pending": engine.pending.count,
        "ring": 0 if engine.neighbours is None else engine.neighbours.seen,
    }
    if engine.trees is not None:
        trees = engine.trees
        found |= {"waiting": trees.watch.waiting, "cursor": trees.cursor}
        found |= pool_state(trees.experts.pool)
    return found


def committee_arrays(engine: CommitteeEngine) -> dict[str, np.ndarray]:
    """Return the arrays by name."""
    pending = engine.pending
    found = {
        "chosen": engine.chosen,
        "reliability": engine.reliability.sums,
        "inputs/mean": engine.inputs.mean,
        "inputs/squares": engine.inputs.squares,
        "pending/vectors": pending.vectors,
        "pending/labels": pending.labels,
        "pending/weights": pending.weights,
        "pending/masks": pending.masks,
    }
    found |= {f"{name}/values": network.values[:3] for name, network in engine.networks.items()}
    if engine.neighbours is not None:
        ring = engine.neighbours
        found |= {f"ring/{name}": getattr(ring, name) for name in _RING}
        found["ring/answers"] = ring.reliability.sums
    if engine.memories is not None:
        found |= {f"memories/{name}": array for name, array in engine.memories.arrays().items()}
    if engine.trees is not None:
        trees = engine.trees
        found |= {f"watch/{name}": getattr(trees.watch, name) for name in trees.watch.ARRAYS}
        found |= {
            "trees/reliability": trees.reliability.sums,
            "trees/numeric": trees.numeric,
            "trees/nominal": trees.nominal,
            "trees/draws": trees.draws,
        }
        pool = trees.experts.pool
        found |= pool_arrays(pool, len(engine.labels), engine.features.n_values)
    return found


def restore_committee(
    engine: CommitteeEngine, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Take over what both functions returned."""
    restore_tables(engine, state, arrays)
    if state["voices"] != engine.names:
        raise UserError(f"it was kept with the voices {state['voices']}, not {engine.names}.")
    inputs, labels, voices = engine.inputs.n_inputs, len(engine.labels), len(engine.names)
    for name, network in engine.networks.items():
        network.grow(inputs, (voices if name == "router" else labels) if labels else 0)
    _check_sizes(engine, arrays, inputs, labels, voices)
    for name, network in engine.networks.items():
        _check_network(name, arrays[f"{name}/values"])
        network.values[:3] = arrays[f"{name}/values"]
        network.steps = state["steps"][name]
    engine.chosen = arrays["chosen"].astype(np.int64)
    engine.reliability.sums[:] = arrays["reliability"]
    pending = engine.pending
    pending.vectors = arrays["pending/vectors"].copy()
    pending.labels[:], pending.weights[:] = arrays["pending/labels"], arrays["pending/weights"]
    pending.masks[:] = arrays["pending/masks"]
    pending.count = _count(state, "pending", STEP_EVERY - 1)
    _check_classes(pending.labels, labels)
    if engine.neighbours is not None:
        _restore_ring(engine.neighbours, _count(state, "ring", None), arrays)
        _check_classes(engine.neighbours.labels, labels)
    if engine.memories is not None:
        kept = {name.removeprefix("memories/"): array for name, array in arrays.items()}
        for name in ("short", "long"):
            _check_classes(kept[f"{name}/labels"], labels)
        engine.memories.restore(kept)
    _restore_trees(engine, state, arrays)
    engine.rng.bit_generator.state = state["rng"]  # after all that draws weights


def _restore_ring(ring: Neighbours, seen: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill the ring; one that was kept when it had 500 places and no relevance is unrolled, oldest first."""
    kept = len(arrays["ring/labels"])
    order, ring.seen = np.arange(WINDOW), seen
    if kept < WINDOW:
        ring.seen = min(seen, kept)
        order = np.arange(seen - ring.seen, seen) % kept
    ring.grow(len(arrays["ring/rows"]))
    ring.rows[:, : len(order)] = arrays["ring/rows"][:, order]
    ring.labels[: len(order)] = arrays["ring/labels"][order]
    ring.weights[: len(order)] = arrays["ring/weights"][order]
    if kept == WINDOW:
        ring.gaps, ring.reliability.sums[:] = arrays["ring/gaps"].copy(), arrays["ring/answers"]
        if not (ring.gaps > 0).all():
            raise UserError("mean squared gaps between rows are not above 0, which cannot be.")
        ring.relevance = relevance_of(ring.gaps)


def _check_network(name: str, values: np.ndarray) -> None:
    """Refuse parameters [0] and moments [1, 2] that no training gives: the inputs of a network are scaled."""
    if not (np.abs(values) < LARGEST).all() or (values[2] < 0).any():
        raise UserError(f"the network {name!r} holds values that are no result of training.")


def _restore_trees(
    engine: CommitteeEngine, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    trees = engine.trees
    if trees is not None:
        for name in trees.watch.ARRAYS:
            setattr(trees.watch, name, arrays[f"watch/{name}"].copy())
        trees.watch.waiting = state["waiting"]
        trees.reliability.sums[:] = arrays["trees/reliability"]
        trees.numeric, trees.nominal = (
            arrays[name].astype(bool) for name in ("trees/numeric", "trees/nominal")
        )
        trees.draws = arrays["trees/draws"].copy()
        trees.cursor = _count(state, "cursor", len(trees.draws))
        pool = FastHoeffdingTreePool(trees.count, TREES)
        restore_pool(pool, engine, engine.labels, state, arrays)
        if len(pool.root) != trees.count:
            raise UserError(f"there are {len(pool.root)} trees, not {trees.count}.")
        trees.experts.plant(pool)
    if len(engine.labels):
        engine.fit()


def _count(state: Mapping[str, Any], name: str, most: int | None) -> int:
    value = state[name]
    if type(value) is not int or value < 0 or (most is not None and value > most):
        raise UserError(f"{name!r} is {value!r}, which cannot be.")
    return value


def _check_classes(labels: np.ndarray, count: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < max(count, 1):
        raise UserError("a kept row has a label that there is not.")


def _check_sizes(
    engine: CommitteeEngine, arrays: Mapping[str, np.ndarray], inputs: int, labels: int, voices: int
) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "chosen": (voices,),
        "reliability": (2, voices),
        "pending/vectors": (STEP_EVERY, inputs if labels else 0),
        "pending/labels": (STEP_EVERY,),
        "pending/weights": (STEP_EVERY,),
        "pending/masks": (STEP_EVERY, voices),
    }
    for name, network in engine.networks.items():
        shapes[f"{name}/values"] = (3, network.n_parameters)
    if engine.neighbours is not None:
        former = len(arrays.get("ring/labels", ())) == FORMER_WINDOW
        width, height = FORMER_WINDOW if former else WINDOW, inputs if labels else 0
        shapes |= {"ring/rows": (height, width), "ring/labels": (width,), "ring/weights": (width,)}
        shapes |= {} if former else {"ring/gaps": (2, height), "ring/answers": (2, 2)}
    if engine.memories is not None:
        shapes["memories/answers"] = (2, 3)
        for name in ("short", "long"):
            kept = min(len(arrays.get(f"memories/{name}/labels", ())), MOST + 1)
            shapes |= {f"memories/{name}/{part}": (kept,) for part in ("labels", "weights")}
            shapes[f"memories/{name}/rows"] = (kept, inputs if labels else 0)
            shapes[f"memories/{name}/right"] = (kept, LEVELS)
    if engine.trees is not None:
        count, features = engine.trees.count, engine.features
        shapes |= {f"watch/{name}": (count,) for name in engine.trees.watch.ARRAYS}
        shapes |= {
            "trees/reliability": (2, count),
            "trees/numeric": (count, len(features.numeric)),
            "trees/nominal": (count, len(features.nominal)),
            "trees/draws": (len(arrays.get("trees/draws", ())), count),
        }
    check_shapes(arrays, shapes)
