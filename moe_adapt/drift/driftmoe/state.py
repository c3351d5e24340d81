"""A DriftMoE in the middle of a stream as arrays and JSON types, and back; no pickles.

Only experts that live in arrays can be kept this way. The restored model goes on as the kept one would have:
statistics, buffers, moments of the optimizer and the state of the random numbers are all there. Labels,
feature names and nominal values are numbers, text, booleans or None. `DriftMoEClassifier.save_pretrained`
writes it to a folder. Arrays are checked against each other when a model is opened.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_adapt.drift.committee.engine import CommitteeEngine
from moe_adapt.drift.committee.state import committee_arrays, committee_state, restore_committee
from moe_adapt.drift.driftmoe.buffer import RowBuffer
from moe_adapt.drift.driftmoe.engine import Engine
from moe_adapt.drift.parts.experts import PoolExperts
from moe_adapt.drift.parts.kept import (
    check_shapes,
    plain,
    pool_arrays,
    pool_state,
    restore_pool,
    restore_tables,
    tables_state,
)
from moe_adapt.errors import UserError

if TYPE_CHECKING:
    from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["driftmoe_from_state", "driftmoe_state"]


def driftmoe_state(model: "DriftMoEClassifier") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a model knows: JSON types, and arrays by name.

    Args:
        model: The model, with experts of its own.

    Raises:
        UserError: If an expert or detector is River's, or a label or name is neither number nor text.
    """
    engine = model._engine
    settings = {key: value for key, value in model._get_params().items() if key != "expert"}
    if not isinstance(model.detector, bool):
        raise UserError("detectors of River are kept as pickles only; leave detector out to save arrays.")
    foreign = [voice for voice in model.experts or () if not isinstance(voice, str)]
    trees = engine.trees.experts if isinstance(engine, CommitteeEngine) and engine.trees else engine.trees
    if foreign or (trees is not None and not hasattr(trees, "pool")):
        raise UserError(
            "experts of River are kept as pickles only; leave expert out to save arrays and JSON."
        )
    settings["experts"] = None if model.experts is None else list(model.experts)
    nominal = settings.pop("nominal_attributes")
    state = {
        "settings": settings,
        "nominal_attributes": None if nominal is None else [plain(name) for name in nominal],
        **tables_state(engine),
    }
    if isinstance(engine, CommitteeEngine):
        return state | committee_state(engine), committee_arrays(engine)
    return state | _engine_state(engine), _engine_arrays(engine)


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
    model = cls(nominal_attributes=names, **_settings(state["settings"]))
    if isinstance(model._engine, CommitteeEngine):
        restore_committee(model._engine, state, arrays)
    else:
        _restore(model._engine, state, arrays)
    _probe(model)
    return model


def _settings(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model; one that names no voices was kept before there were any."""
    settings = dict(kept)
    if settings.get("experts") is not None:
        settings["experts"] = tuple(settings["experts"])
    return settings


def _probe(model: "DriftMoEClassifier") -> None:
    """Make sure that arrays and tables fit together: a row without values has to get an answer."""
    engine = model._engine
    missing = {name: None for name in (*engine.features.numeric, *engine.features.nominal)}
    proba = engine.predict(missing)
    engine._seen = None
    if proba.shape != (len(engine.labels),):
        raise UserError(f"it gives {proba.shape} probabilities for {len(engine.labels)} labels.")


def _networks(engine: Engine) -> dict[str, Any]:
    return {"router": engine.router} | ({} if engine.neural is None else {"neural": engine.neural})


def _buffers(engine: Engine) -> dict[str, RowBuffer]:
    return {"buffer": engine.buffer, "neural_buffer": engine.neural_buffer}


def _engine_state(engine: Engine) -> dict[str, Any]:
    assert isinstance(engine.trees, PoolExperts)
    return {
        "n_trees": engine.n_trees,
        "waiting": engine.watch.waiting,
        "steps": {name: network.steps for name, network in _networks(engine).items()},
        **pool_state(engine.trees.pool),
    }


def _engine_arrays(engine: Engine) -> dict[str, np.ndarray]:
    assert isinstance(engine.trees, PoolExperts)
    found = {"learned": np.array(engine.learned, dtype=np.int64), "chosen": engine.chosen}
    found |= pool_arrays(engine.trees.pool, len(engine.expert_labels), engine.features.n_values)
    found |= {f"watch/{name}": getattr(engine.watch, name) for name in engine.watch.ARRAYS}
    found |= {f"inputs/{name}": getattr(engine.inputs, name) for name in ("mean", "squares")}
    for name, network in _networks(engine).items():
        found |= {f"{name}/{key}": values for key, values in network.arrays().items()}
    for name, buffer in _buffers(engine).items():
        for part in ("inputs", "targets"):
            found[f"{name}/{part}"] = np.array(getattr(buffer, part), dtype=np.float32)
    return found


def _restore(engine: Engine, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    assert isinstance(engine.trees, PoolExperts)
    restore_tables(engine, state, arrays)
    engine.n_trees = state["n_trees"]
    _check_sizes(engine, arrays)
    engine.learned, engine.chosen = arrays["learned"].tolist(), arrays["chosen"].copy()
    for name in engine.watch.ARRAYS:
        setattr(engine.watch, name, arrays[f"watch/{name}"].copy())
    engine.watch.waiting = state["waiting"]
    for name, network in _networks(engine).items():
        own = {key.partition("/")[2]: v for key, v in arrays.items() if key.startswith(f"{name}/")}
        network.restore(own, state["steps"][name])
    for name, buffer in _buffers(engine).items():
        buffer.inputs, buffer.targets = list(arrays[f"{name}/inputs"]), list(arrays[f"{name}/targets"])
    restore_pool(engine.trees.pool, engine, engine.expert_labels, state, arrays)
    if len(engine.trees.pool.root) != max(engine.n_trees + engine.reserve, 1):
        raise UserError("there are not as many trees as experts.")


def _check_sizes(engine: Engine, arrays: Mapping[str, np.ndarray]) -> None:
    """Make sure that counters, watch, networks and buffers have the sizes of experts, inputs and classes."""
    trees, labels = engine.n_trees, len(engine.labels)
    if type(trees) is not int or trees != (labels if engine.task else engine.options.n_experts):
        raise UserError(f"there are {trees} trees for {labels} labels.")
    experts, inputs = engine.n_experts, engine.inputs.n_inputs
    shapes: dict[str, tuple[int, ...]] = {"learned": (trees + engine.reserve,), "chosen": (experts,)}
    shapes |= {f"watch/{name}": (trees,) for name in engine.watch.ARRAYS}
    outputs = {"router": experts, "neural": labels}
    for name, network in _networks(engine).items():
        one, two = network.weights[0].shape[1], network.weights[1].shape[1]
        fresh = not labels
        sizes = (0, one, two, 0) if fresh else (inputs, one, two, outputs[name])
        for place in range(3):
            pair = sizes[place : place + 2]
            shapes[f"{name}/weights.{place}"], shapes[f"{name}/biases.{place}"] = pair, pair[1:]
            for moment in ("first", "second"):
                shapes[f"{name}/{moment}.{place}"] = pair
                shapes[f"{name}/{moment}.{place + 3}"] = pair[1:]
    for name, target in (("buffer", experts), ("neural_buffer", labels)):
        waiting = len(arrays.get(f"{name}/inputs", ()))
        if waiting:
            shapes |= {f"{name}/inputs": (waiting, inputs), f"{name}/targets": (waiting, target)}
        elif len(arrays.get(f"{name}/targets", ())):
            raise UserError(f"{name!r} holds targets without inputs.")
    check_shapes(arrays, shapes)
