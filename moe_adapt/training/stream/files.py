"""The files of a stream run: each is written beside its name and renamed, so that none is ever half there.

* ``last.ckpt``: learner and result at the last task boundary; ``--resume`` goes on from it
* ``result.json``: accuracy matrix, metrics, times, sizes, manifest
* ``tasks.csv``: one line per task: accuracies, times, sizes
* ``predictions/``: predicted class of every test sample after each task, labels and tasks
* ``report.html``: all of it as one page
* ``adapter/``: the adapter as PEFT reads it, if the learner has one
"""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from moe_adapt.errors import UserError
from moe_adapt.files import delete, used, write_file
from moe_adapt.training.stream.evaluate import Evaluation
from moe_adapt.training.stream.result import StreamResult

__all__ = ["jsonable", "reserve", "write_file", "write_predictions", "write_result"]

FILES = ("last.ckpt", "result.json", "tasks.csv", "predictions", "report.html", "adapter")


def reserve(folder: Path, overwrite: bool) -> None:
    """Make sure that a new run may write into `folder`.

    Raises:
        UserError: If it holds a run that may not be replaced; nothing was changed.
    """
    present = used(folder, FILES)
    if present and not overwrite:
        raise UserError(
            f"{folder} already holds a stream run ({', '.join(path.name for path in present)}); "
            "choose another "
            "folder with --out, continue that run with --resume, or replace it with --overwrite."
        )
    delete(present)


def write_result(folder: Path, result: StreamResult) -> None:
    """Write ``result.json`` and ``tasks.csv``."""
    text = json_text(result.to_dict(), nested=3) + "\n"
    write_file(folder / "result.json", text)
    rows = result.table()
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_file(folder / "tasks.csv", table.getvalue())


def write_predictions(folder: Path, step: int, found: Evaluation) -> None:
    """Write the predicted classes of a step, int16 where they fit."""
    values = found.prediction
    if values.max(initial=0) < 2**15:
        values = values.astype(np.int16)
    write_file(folder / "predictions" / f"{step:04d}.npy", lambda file: np.save(file, values), sync=False)


def json_text(value: Any, nested: int) -> str:
    """Return JSON with a line per entry of the outermost `nested` levels.

    What lies deeper is one line each: two matrices of 300 tasks have 180,000 numbers, and a line per number
    takes twenty times as long to write.
    """
    if nested and isinstance(value, dict) and value:
        lines = [f"{json.dumps(str(key))}: {json_text(item, nested - 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if nested and isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(json_text(item, 0) for item in value) + "\n]"
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(jsonable(value))


def jsonable(value: Any) -> Any:
    """Return `value` with what JSON has no word for (nan, infinity) as None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
