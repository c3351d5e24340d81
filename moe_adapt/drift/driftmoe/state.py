"""A DriftMoE in the middle of a stream as arrays and JSON types, and back; no pickles.

Only experts that live in arrays can be kept this way. The restored model goes on as the kept one would have:
statistics, buffers, moments of the optimizer and the state of the random numbers are all there. Labels,
feature names and nominal values are numbers, text, booleans or None. `DriftMoEClassifier.save_pretrained`
writes it to a folder.
"""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_adapt.drift.driftmoe.buffer import RowBuffer
from moe_adapt.drift.driftmoe.engine import Engine
from moe_adapt.drift.driftmoe.experts import PoolExperts
from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool
from moe_adapt.drift.hoeffding.leaves import LeafStore
from moe_adapt.drift.hoeffding.nodes import LEAF
from moe_adapt.errors import UserError

if TYPE_CHECKING:
    from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["driftmoe_from_state", "driftmoe_state"]

_NODES = ("root", "feature", "threshold", "left", "right", "depth", "slot", "free_nodes", "n_leaves")


def driftmoe_state(model: "DriftMoEClassifier") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a model knows: JSON types, and arrays by name.

    Args:
        model: The model, with experts of its own.

    Raises:
        UserError: If the experts are River's, or a label or name is neither number nor text.
    """
    engine = model._engine
    if not isinstance(engine.trees, PoolExperts):
        raise UserError(
            "experts of River are kept as pickles only; leave expert out to save arrays and JSON."
        )
    settings = {key: value for key, value in model._get_params().items() if key != "expert"}
    nominal = settings.pop("nominal_attributes")
    state = {
        "settings": settings,
        "nominal_attributes": None if nominal is None else [_plain(name) for name in nominal],
        **_engine_state(engine),
    }
    return state, _engine_arrays(engine)


def driftmoe_from_state(
    cls: "type[DriftMoEClassifier]", state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> "DriftMoEClassifier":
    """Return the model that `driftmoe_state` was given.

    Args:
        cls: The class of the model.
        state: JSON types.
        arrays: Arrays by name.

    Raises:
        UserError: If both do not describe one model.
    """
    nominal = state["nominal_attributes"]
    names = None if nominal is None else tuple(nominal)
    model = cls(nominal_attributes=names, **state["settings"])
    _restore(model._engine, state, arrays)
    _probe(model)
    return model


def _probe(model: "DriftMoEClassifier") -> None:
    """Make sure that arrays and tables fit together: a row without values has to get an answer."""
    engine = model._engine
    missing = {name: None for name in (*engine.features.numeric, *engine.features.nominal)}
    proba = engine.predict(missing)
    engine._seen = None
    if proba.shape != (len(engine.labels),):
        raise UserError(f"it gives {proba.shape} probabilities for {len(engine.labels)} labels.")


def _plain(value: Hashable) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, (str, int, float)):
        raise UserError(f"{value!r} is a label or name that JSON cannot hold: use text or numbers.")
    return value


def _networks(engine: Engine) -> dict[str, Any]:
    return {"router": engine.router} | ({} if engine.neural is None else {"neural": engine.neural})


def _buffers(engine: Engine) -> dict[str, RowBuffer]:
    return {"buffer": engine.buffer, "neural_buffer": engine.neural_buffer}


def _engine_state(engine: Engine) -> dict[str, Any]:
    assert isinstance(engine.trees, PoolExperts)
    pool, features = engine.trees.pool, engine.features
    return {
        "labels": [_plain(label) for label in engine.labels.labels],
        "numeric": [_plain(name) for name in features.numeric],
        "nominal": [_plain(name) for name in features.nominal],
        "values": [[_plain(value) for value in known] for known in features.values],
        "inputs": [[*key, place] for key, place in engine.inputs.place.items()],
        "inputs_seen": engine.inputs.count,
        "n_trees": engine.n_trees,
        "events": engine.events,
        "waiting": engine.watch.waiting,
        "steps": {name: network.steps for name, network in _networks(engine).items()},
        "rng": engine.rng.bit_generator.state,
        "nodes": {name: getattr(pool, name) for name in _NODES},
        "branches": [[node, list(children.items())] for node, children in pool.branches.items()],
        "leaves": {
            name: getattr(pool.store, name) for name in (*LeafStore.SCALARS, "order", "observed", "free")
        },
    }


def _engine_arrays(engine: Engine) -> dict[str, np.ndarray]:
    assert isinstance(engine.trees, PoolExperts)
    found = {"learned": np.array(engine.learned, dtype=np.int64), "chosen": engine.chosen}
    found |= _leaf_arrays(engine.trees.pool.store, len(engine.expert_labels), engine.features.n_values)
    found |= {f"watch/{name}": getattr(engine.watch, name) for name in engine.watch.ARRAYS}
    found |= {f"inputs/{name}": getattr(engine.inputs, name) for name in ("mean", "squares")}
    for name, network in _networks(engine).items():
        found |= {f"{name}/{key}": values for key, values in network.arrays().items()}
    for name, buffer in _buffers(engine).items():
        for part in ("inputs", "targets"):
            found[f"{name}/{part}"] = np.array(getattr(buffer, part), dtype=np.float32)
    return found


#: Which axes of a leaf's arrays count classes and nominal values.
_AXES = {
    "count": (1, None),
    "gauss": (2, None),
    "moments": (1, None),
    "table": (3, 2),
    "logs": (3, 2),
    "base": (1, None),
    "normaliser": (1, None),
}


def _leaf_arrays(store: LeafStore, n_classes: int, n_values: int) -> dict[str, np.ndarray]:
    """Return the statistics of the leaves without the room kept for classes and values to come."""
    found = {}
    for name, (classes, values) in _AXES.items():
        array = getattr(store, name)
        cut = [slice(None)] * array.ndim
        cut[classes] = slice(n_classes)
        if values is not None:
            cut[values] = slice(n_values)
        found[f"leaves/{name}"] = array[tuple(cut)]
    return found


def _restore(engine: Engine, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    assert isinstance(engine.trees, PoolExperts)
    for label in state["labels"]:
        engine.labels.learn(label)
    features = engine.features
    features.numeric = {name: column for column, name in enumerate(state["numeric"])}
    features.nominal = {name: column for column, name in enumerate(state["nominal"])}
    features.values = [{value: code for code, value in enumerate(known)} for known in state["values"]]
    features.refresh()
    engine.inputs.place = {(kind, column, code): place for kind, column, code, place in state["inputs"]}
    engine.inputs.restore(features, arrays["inputs/mean"], arrays["inputs/squares"], state["inputs_seen"])
    engine.n_trees = state["n_trees"]
    engine.learned, engine.chosen = arrays["learned"].tolist(), arrays["chosen"].copy()
    engine.events = dict(state["events"])
    for name in engine.watch.ARRAYS:
        setattr(engine.watch, name, arrays[f"watch/{name}"].copy())
    engine.watch.waiting = state["waiting"]
    for name, network in _networks(engine).items():
        own = {key.partition("/")[2]: v for key, v in arrays.items() if key.startswith(f"{name}/")}
        network.restore(own, state["steps"][name])
    for name, buffer in _buffers(engine).items():
        buffer.inputs, buffer.targets = list(arrays[f"{name}/inputs"]), list(arrays[f"{name}/targets"])
    _restore_pool(engine.trees.pool, engine, state, arrays)
    engine.rng.bit_generator.state = state["rng"]


def _restore_pool(
    pool: FastHoeffdingTreePool, engine: Engine, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    for name in _NODES:
        setattr(pool, name, list(state["nodes"][name]))
    pool.branches = {node: {code: child for code, child in children} for node, children in state["branches"]}
    for name, values in state["leaves"].items():
        setattr(pool.store, name, [list(v) if isinstance(v, list) else v for v in values])
    for name in LeafStore.ARRAYS:
        setattr(pool.store, name, arrays[f"leaves/{name}"].copy())
    _check_trees(pool, len(engine.features.numeric), len(engine.features.nominal))
    pool.fit(engine.features, engine.expert_labels)


def _check_trees(pool: FastHoeffdingTreePool, numeric: int, nominal: int) -> None:
    """Make sure that every tree is one: known columns, no node twice, leaves with a slot of their own."""
    nodes, slots, leaves = set(), set(), 0
    waiting = list(pool.root)
    while waiting:
        node = waiting.pop()
        if node in nodes or not 0 <= node < len(pool.feature):
            raise UserError(f"node {node} of a tree is missing, or in two places.")
        nodes.add(node)
        test = pool.feature[node]
        if test != LEAF:
            if not -2 - nominal < test < numeric:
                raise UserError(f"node {node} of a tree tests column {test}, which there is not.")
            waiting += pool._children(node)
            continue
        leaves += 1
        slots.add(pool.slot[node])
    counts = {len(getattr(pool.store, name)) for name in (*LeafStore.SCALARS, "order", "observed")}
    rows = {len(getattr(pool.store, name)) for name in LeafStore.ARRAYS}
    if len(slots) != leaves or len(counts) != 1 or len(rows) != 1 or min(rows) < max(counts):
        raise UserError("leaves of the trees and their statistics are not as many.")
    if not slots <= set(range(max(counts))):
        raise UserError("a leaf of a tree has no statistics.")
