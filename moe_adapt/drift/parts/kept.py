"""What models of every mode keep of tables, trees and inputs; what is kept has to fit together."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool
from moe_adapt.drift.hoeffding.leaves import LeafStore, leaf_shapes
from moe_adapt.drift.hoeffding.nodes import LEAF
from moe_adapt.errors import UserError

__all__ = [
    "check_shapes",
    "plain",
    "pool_arrays",
    "pool_state",
    "restore_pool",
    "restore_tables",
    "tables_state",
]

_NODES = ("root", "feature", "threshold", "left", "right", "depth", "slot", "free_nodes", "n_leaves")
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


def check_shapes(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a `UserError` if an array is missing or has another shape than it should."""
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"{name!r} is missing.")
        if arrays[name].shape != shape:
            raise UserError(f"{name!r} has the shape {arrays[name].shape}, not {shape}.")


def tables_state(engine: Any) -> dict[str, Any]:
    """Return columns, values, labels, places of the inputs, counters and drifts of an engine."""
    features = engine.features
    return {
        "labels": [plain(label) for label in engine.labels.labels],
        "numeric": [plain(name) for name in features.numeric],
        "nominal": [plain(name) for name in features.nominal],
        "values": [[plain(value) for value in known] for known in features.values],
        "inputs": [[*key, place] for key, place in engine.inputs.place.items()],
        "inputs_seen": engine.inputs.count,
        "events": engine.events,
        "drifts": [list(drift) for drift in engine.drifts],
        "rng": engine.rng.bit_generator.state,
    }


def restore_tables(engine: Any, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Take over what `tables_state` returned, with mean and squared deviations of the inputs."""
    for label in state["labels"]:
        engine.labels.learn(label)
    features = engine.features
    features.numeric = {name: column for column, name in enumerate(state["numeric"])}
    features.nominal = {name: column for column, name in enumerate(state["nominal"])}
    features.values = [{value: code for code, value in enumerate(known)} for known in state["values"]]
    sizes = len(engine.labels), len(features.numeric), len(features.nominal)
    if sizes != (len(state["labels"]), len(state["numeric"]), len(state["nominal"])):
        raise UserError("a label or a column is there twice.")
    if len(features.values) != len(features.nominal):
        raise UserError("nominal columns and lists of values are not as many.")
    features.refresh()
    places = {(kind, column, code): place for kind, column, code, place in state["inputs"]}
    if sorted(places.values()) != list(range(len(places))):
        raise UserError("the inputs of the networks are not numbered from 0 on.")
    check_shapes(arrays, {"inputs/mean": (len(places),), "inputs/squares": (len(places),)})
    engine.inputs.place = places
    engine.inputs.restore(features, arrays["inputs/mean"], arrays["inputs/squares"], state["inputs_seen"])
    if engine.inputs.n_inputs != len(places):
        raise UserError("the columns have other inputs than those that are kept.")
    engine.events = {**engine.events, **state["events"]}
    engine.drifts = [(row, expert) for row, expert in state.get("drifts", ())]
    engine.rng.bit_generator.state = state["rng"]


def pool_state(pool: FastHoeffdingTreePool) -> dict[str, Any]:
    """Return the lists of a pool of trees."""
    names = (*LeafStore.SCALARS, "order", "observed", "free")
    return {
        "nodes": {name: getattr(pool, name) for name in _NODES},
        "branches": [[node, list(children.items())] for node, children in pool.branches.items()],
        "gains": [list(own.items()) for own in pool.gains],
        "leaves": {name: getattr(pool.store, name) for name in names},
    }


def pool_arrays(pool: FastHoeffdingTreePool, n_classes: int, n_values: int) -> dict[str, np.ndarray]:
    """Return the statistics of the leaves without the room kept for classes and values to come."""
    found = {}
    for name, (classes, values) in _AXES.items():
        array = getattr(pool.store, name)
        cut = [slice(None)] * array.ndim
        cut[classes] = slice(n_classes)
        if values is not None:
            cut[values] = slice(n_values)
        found[f"leaves/{name}"] = array[tuple(cut)]
    return found


def restore_pool(
    pool: FastHoeffdingTreePool,
    engine: Any,
    labels: Any,
    state: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Give a pool the trees that were kept; columns and labels have been restored before."""
    features = engine.features
    n_classes, n_numeric, n_nominal = len(labels), len(features.numeric), len(features.nominal)
    kept = arrays.get("leaves/count", np.zeros((0, 0)))
    if not (kept.ndim == 2 and kept.shape[1] in (0, n_classes)):
        raise UserError(f"the leaves count {kept.shape} classes, but there are {n_classes} labels.")
    slots, n_values = len(kept), features.n_values
    c, f, g, v = (n_classes, n_numeric, n_nominal, n_values) if kept.shape[1] else (0, 0, 0, 0)
    shapes = leaf_shapes(slots, c, f, g, v)
    check_shapes(arrays, {f"leaves/{name}": shape for name, shape in shapes.items()})
    for name in _NODES:
        setattr(pool, name, list(state["nodes"][name]))
    pool.branches = {node: {code: child for code, child in children} for node, children in state["branches"]}
    pool.gains = [dict(map(tuple, own)) for own in state.get("gains", [[]] * len(pool.root))]
    for name, values in state["leaves"].items():
        setattr(pool.store, name, [list(one) if isinstance(one, list) else one for one in values])
    for name in LeafStore.ARRAYS:
        setattr(pool.store, name, arrays[f"leaves/{name}"].astype(np.float64))
    _check_lists(pool, n_classes)
    _check_trees(pool, n_numeric, n_nominal)
    pool.fit(features, labels)


def _check_lists(pool: FastHoeffdingTreePool, n_classes: int) -> None:
    """Make sure that lists are as long as each other and name classes and nodes that there are."""
    nodes, store = len(pool.feature), pool.store
    lengths = {len(getattr(pool, name)) for name in ("threshold", "left", "right", "depth", "slot")}
    counts = {len(getattr(store, name)) for name in (*LeafStore.SCALARS, "order", "observed")}
    rows = len(store.count)
    if lengths - {nodes} or len(counts) != 1 or max(counts) > rows:
        raise UserError("leaves of the trees and their statistics are not as many.")
    if not len(pool.root) == len(pool.n_leaves) == len(pool.gains):
        raise UserError("trees, their leaves and their gains are not as many.")
    slots = len(store.total)
    _check_numbers("a free node", pool.free_nodes, nodes)
    _check_numbers("a free leaf", store.free, slots)
    for one in (*store.order, *store.observed):
        _check_numbers("a class of a leaf", one, n_classes)
    _check_numbers("a majority class", [best for best in store.best if best != -1], n_classes)


def _check_numbers(what: str, numbers: list[int], count: int) -> None:
    whole = all(type(number) is int and 0 <= number < count for number in numbers)
    if not whole or (len(set(numbers)) < len(numbers) and not what.startswith("a majority")):
        raise UserError(f"{what} is not one of {count}, or is there twice.")


def _check_trees(pool: FastHoeffdingTreePool, numeric: int, nominal: int) -> None:
    """Make sure that every tree is one: known columns, no node twice, leaves with a slot of their own."""
    nodes, slots, leaves = set(pool.free_nodes), set(pool.store.free), len(pool.store.free)
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
    if len(slots) != leaves or not slots <= set(range(len(pool.store.total))):
        raise UserError("a leaf of a tree has no statistics of its own.")


def plain(value: Hashable) -> Any:
    """Return a label or name as a JSON type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, (str, int, float)):
        raise UserError(f"{value!r} is a label or name that JSON cannot hold: use text or numbers.")
    return value
