"""A recipe for a file of one's own: DriftMoE beside the simple learners and one forest, in minutes."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from moe_adapt.drift.comparison.recipe import read_recipe
from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.drift.streams.own import file_stream
from moe_adapt.errors import UserError

__all__ = ["OWN_METHODS", "own_recipe"]

OWN_METHODS = ("no_change", "majority", "naive_bayes", "hoeffding_tree", "arf10", "driftmoe")
_LEAST_ROWS = 20


def own_recipe(data: Path, label: str | None, nominal: tuple[str, ...], out: Path) -> Path:
    """Write the recipe of a comparison into its folder, say how the file is read, and return its path.

    Args:
        data: The file of the rows.
        label: The column to predict.
        nominal: Columns of numbers that are nominal.
        out: Folder of the comparison.

    Raises:
        UserError: If the file cannot be a stream, or the folder holds another comparison.
    """
    stream = file_stream(data, label, nominal=nominal)
    if len(stream) < _LEAST_ROWS:
        raise UserError(f"{data} has {len(stream)} rows; a comparison needs {_LEAST_ROWS} or more.")
    print(_as_read(stream))
    name = data.name.partition(".")[0]
    entry = {"name": name, "file": str(data.resolve()), "label": label, "nominal": list(nominal)}
    content = {
        "title": f"Learners on {name}",
        "window": max(20, min(1000, len(stream) // 20)),
        "seeds": [1],
        "memory": False,
        "streams": [{key: value for key, value in entry.items() if value}],
        "methods": list(OWN_METHODS),
    }
    path = out / "recipe.yaml"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{out} holds another comparison; name a new folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    read_recipe(path)
    return path


def _as_read(stream: DriftStream) -> str:
    """Return what the columns of a stream are taken for."""
    numbers = [name for name in stream.features if name not in stream.nominal]
    names = [name for name in stream.features if name in stream.nominal]
    kinds = [
        f"{len(own):,} {'column' if len(own) == 1 else 'columns'} of {what} ({_listed(own)})"
        for what, own in (("numbers", numbers), ("names", names))
        if own
    ]
    return f"{len(stream):,} rows, {stream.n_classes:,} classes; {', '.join(kinds)}"


def _listed(names: Sequence[str], most: int = 6) -> str:
    """Return some names and how many there are besides.

    >>> _listed(list("abc"), most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
