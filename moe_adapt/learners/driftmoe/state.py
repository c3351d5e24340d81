"""Save and load a DriftMoE in the middle of a stream: arrays in one npz file, the rest as JSON; no pickles.

Only experts that live in arrays can be kept this way. The loaded model goes on as the saved one would have:
statistics, buffers, moments of the optimizer and the state of the random numbers are all there. Labels,
feature names and nominal values are numbers, text, booleans or None.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from moe_adapt.errors import UserError
from moe_adapt.learners.driftmoe.buffer import RowBuffer
from moe_adapt.learners.driftmoe.classifier import DriftMoEClassifier
from moe_adapt.learners.driftmoe.engine import Engine
from moe_adapt.learners.driftmoe.experts import PoolExperts
from moe_adapt.learners.hoeffding.leaves import LeafStore
from moe_adapt.learners.hoeffding.pool import FastHoeffdingTreePool

__all__ = ["load_driftmoe", "save_driftmoe"]

_FORMAT = 1
_STATE, _ARRAYS = "state.json", "arrays.npz"
_NODES = ("root", "feature", "threshold", "left", "right", "depth", "slot", "free_nodes", "n_leaves")


def save_driftmoe(model: DriftMoEClassifier, folder: str | Path) -> None:
    """Write a model to a new folder, whole or not at all.

    Args:
        model: The model, with experts of its own.
        folder: Where to; must not exist.

    Raises:
        UserError: If the folder exists, the experts are River's, or a label or name is neither number nor
            text.
    """
    target = Path(folder)
    if target.exists():
        raise UserError(f"{target} exists; save to a new folder.")
    engine = model._engine
    if not isinstance(engine.trees, PoolExperts):
        raise UserError(
            "experts of River are kept as pickles only; leave expert out to save arrays and JSON."
        )
    settings = {key: value for key, value in model._get_params().items() if key != "expert"}
    nominal = settings.pop("nominal_attributes")
    state = {
        "format": _FORMAT,
        "settings": settings,
        "nominal_attributes": None if nominal is None else [_plain(name) for name in nominal],
        **_engine_state(engine),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        (work / _STATE).write_text(json.dumps(state), encoding="utf-8")
        np.savez(work / _ARRAYS, **_engine_arrays(engine))  # type: ignore[arg-type]
        os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def load_driftmoe(folder: str | Path) -> DriftMoEClassifier:
    """Return the model that `save_driftmoe` wrote.

    Args:
        folder: The folder.

    Raises:
        UserError: If the folder does not hold such a model.
    """
    folder = Path(folder)
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder} does not hold a saved DriftMoE: {problem}.") from problem
    if state.get("format") != _FORMAT:
        raise UserError(f"{folder} is of format {state.get('format')!r}; this version reads {_FORMAT}.")
    nominal = state["nominal_attributes"]
    names = None if nominal is None else tuple(nominal)
    model = DriftMoEClassifier(nominal_attributes=names, **state["settings"])
    _restore(model._engine, state, arrays)
    return model


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
    found |= {f"leaves/{name}": getattr(engine.trees.pool.store, name) for name in LeafStore.ARRAYS}
    found |= {f"watch/{name}": getattr(engine.watch, name) for name in engine.watch.ARRAYS}
    found |= {f"inputs/{name}": getattr(engine.inputs, name) for name in ("mean", "squares")}
    for name, network in _networks(engine).items():
        found |= {f"{name}/{key}": values for key, values in network.arrays().items()}
    for name, buffer in _buffers(engine).items():
        for part in ("inputs", "targets"):
            found[f"{name}/{part}"] = np.array(getattr(buffer, part), dtype=np.float32)
    return found


def _restore(engine: Engine, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
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
    pool: FastHoeffdingTreePool, engine: Engine, state: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    for name in _NODES:
        setattr(pool, name, list(state["nodes"][name]))
    pool.branches = {node: {code: child for code, child in children} for node, children in state["branches"]}
    for name, values in state["leaves"].items():
        setattr(pool.store, name, [list(v) if isinstance(v, list) else v for v in values])
    for name in LeafStore.ARRAYS:
        setattr(pool.store, name, arrays[f"leaves/{name}"].copy())
    pool.fit(engine.features, engine.expert_labels)
