"""Run one cell of a comparison and keep its result as one JSON file, written whole or not at all.

A cell that is there is not run again, so an interrupted comparison goes on where it stopped. Each file holds
the settings it was made with; if they are not the recipe's, the folder belongs to another comparison.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moe_adapt.drift.comparison.recipe import Cell, Recipe
from moe_adapt.drift.metrics import prequential_metrics, recovery, windowed
from moe_adapt.drift.prequential import test_then_train
from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.errors import UserError
from moe_adapt.files import write_file
from moe_adapt.reading import read_json

__all__ = ["UNIT", "finished", "run_cell", "write_json"]

#: Rows over which right answers are counted, for intervals of differences.
UNIT = 100

#: Points of a curve, and of the measured time and memory.
_POINTS = 40
_CHECKPOINTS = 8
_WARM_ROWS = 16


def finished(cell: Cell, recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """Return the result of a cell that was run before, None if it was not.

    Raises:
        UserError: If it was run with other settings.
    """
    path = cell.path(folder)
    if not path.is_file():
        return None
    result = read_json(path, "the result of a cell", "delete it, and it is run again")
    if result.get("settings") != _settings(cell, recipe):
        raise UserError(
            f"{path} was made with other settings than the recipe's; give a new --out folder or delete it."
        )
    return result


def run_cell(
    cell: Cell,
    recipe: Recipe,
    folder: Path,
    made_with: dict[str, Any],
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run a cell, write its result and return it.

    Args:
        cell: What to run.
        recipe: Window, delay and what to measure.
        folder: The comparison's folder.
        made_with: The manifest of the run.
        advance: Is told the rows done since the last call.
    """
    stream = cell.stream.build(cell.seed)
    _warm_up(cell, stream)
    model = cell.method.build(stream, cell.seed)
    loads: list[tuple[int, list[float]]] = []
    before: list[np.ndarray] = []

    def observe(rows: int, learner: Any) -> None:
        counts = getattr(learner, "expert_rows", None)
        if counts is None:
            return
        now = np.asarray(counts, dtype=float)
        fresh = now.copy()
        if before:  # task mode adds an expert with every class
            fresh[: len(before[0])] -= before[0]
        before[:] = [now]
        loads.append((rows, [round(float(v), 4) for v in fresh / max(fresh.sum(), 1.0)]))

    block = max(1, math.ceil(len(stream) / _CHECKPOINTS))
    found = test_then_train(
        model, stream, recipe.delay, block, memory=recipe.memory, advance=advance, observe=observe
    )
    rows = len(found.truth)
    window = min(recipe.window, max(1, rows // 4))
    curves = windowed(found.truth, found.predicted, window, every=max(1, rows // _POINTS))
    result = {
        "settings": _settings(cell, recipe),
        "stream": cell.stream.name,
        "method": cell.method.name,
        "seed": cell.seed,
        "rows": rows,
        "classes": len(found.labels),
        "window": window,
        "drifts": list(stream.drifts),
        "bayes": stream.bayes,
        **{name: _number(value) for name, value in prequential_metrics(found.truth, found.predicted).items()},
        "cpu_us_per_row": _number(1e6 * found.seconds / rows),
        "model_mb": _number(found.bytes_at[-1] / 1e6) if found.bytes_at else None,
        "checkpoints": {"rows": found.rows, "cpu_seconds": found.seconds_at, "model_bytes": found.bytes_at},
        "right": _right(found.truth == found.predicted),
        "recovery": recovery(found.truth, found.predicted, stream.drifts, window),
        "curves": {name: [_number(value) for value in values] for name, values in curves.items()},
        "expert_load": {"rows": [row for row, _ in loads], "share": [load for _, load in loads]},
        "events": dict(getattr(model, "events", {})),
        "made_with": made_with,
    }
    write_json(cell.path(folder), result)
    return result


def _warm_up(cell: Cell, stream: DriftStream) -> None:
    """Let a model of its own learn a few rows: imports and compilation are no time of a row."""
    model = cell.method.build(stream, cell.seed)
    for x, y in islice(stream, _WARM_ROWS):
        model.predict_one(x)
        model.learn_one(x, y)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file beside its name and rename it: never half a file."""
    write_file(path, json.dumps(content, indent=1) + "\n")


def _settings(cell: Cell, recipe: Recipe) -> dict[str, Any]:
    own = ("file", "label", "nominal")  # named where they are used: results of other streams are older
    left_out = {"seeds"} if cell.stream.file else {"seeds", *own}
    stream = {key: value for key, value in asdict(cell.stream).items() if key not in left_out}
    method = {"kind": cell.method.kind, **cell.method.options}
    found = {"stream": stream, "method": method, "window": recipe.window, "delay": recipe.delay}
    return json.loads(json.dumps(found))


def _right(hits: np.ndarray) -> str:
    """Return the right answers of every `UNIT` rows, the last unit may be short, as one line."""
    return " ".join(str(int(count)) for count in np.add.reduceat(hits, np.arange(0, len(hits), UNIT)))


def _number(value: float | int | None) -> float | int | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
