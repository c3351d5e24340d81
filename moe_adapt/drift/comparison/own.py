"""A recipe for a file of one's own: DriftMoE beside the simple learners and one forest, in minutes."""

from pathlib import Path

import yaml

from moe_adapt.drift.comparison.recipe import read_recipe
from moe_adapt.drift.streams.own import file_stream
from moe_adapt.errors import UserError

__all__ = ["OWN_METHODS", "own_recipe"]

OWN_METHODS = ("no_change", "majority", "naive_bayes", "hoeffding_tree", "arf10", "driftmoe")
_LEAST_ROWS = 20


def own_recipe(data: Path, label: str | None, nominal: tuple[str, ...], out: Path) -> Path:
    """Write the recipe of a comparison into its folder and return its path.

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
