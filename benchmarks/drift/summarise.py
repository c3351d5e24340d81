"""Turn the cells of a comparison into one committed file, or add them to it.

python benchmarks/drift/summarise.py --recipe benchmarks/drift/streams.yaml --folder RUN \
    --out benchmarks/results/drift_streams.json

A cell of the file stays until the folder has the same stream, method and seed: rows of rivals hold as long as
stream and protocol are the same. Every row has the number of its manifest.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from moe_adapt.drift.comparison.cells import write_json
from moe_adapt.drift.comparison.compare import MANIFEST_FILE, collect_results
from moe_adapt.drift.comparison.recipe import read_recipe

KEPT = ("seed", "rows", "classes", "window", "drifts", "bayes", "accuracy", "kappa", "kappa_m", "kappa_t")
MORE = ("unanswered", "cpu_us_per_row", "model_mb", "right", "recovery", "events")

#: stream -> method -> seed -> (row, manifest)
Rows = dict[str, dict[str, dict[int, tuple[dict[str, Any], dict[str, Any]]]]]


def kept_rows(path: Path) -> Rows:
    """Return the rows of the file as it is."""
    rows: Rows = {}
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        for stream, methods in content["results"].items():
            for method, own in methods.items():
                seeds = rows.setdefault(stream, {}).setdefault(method, {})
                seeds |= {row["seed"]: (row, content["manifests"][row["manifest"]]) for row in own}
    return rows


def add_cells(rows: Rows, recipe: Path, folder: Path) -> None:
    """Put the cells of a folder among the rows."""
    for stream, methods in collect_results(read_recipe(recipe), folder).items():
        for method, cells in methods.items():
            for cell in cells:
                made_with = cell.get("made_with") or json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
                row = {key: cell[key] for key in (*KEPT, *MORE) if key in cell}
                rows.setdefault(stream, {}).setdefault(method, {})[cell["seed"]] = (row, made_with)


def content_of(rows: Rows, title: str) -> dict[str, Any]:
    """Return what the file holds."""
    manifests: list[dict[str, Any]] = []
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for stream, methods in rows.items():
        for method, seeds in methods.items():
            for _, (row, made_with) in sorted(seeds.items()):
                if made_with not in manifests:
                    manifests.append(made_with)
                numbered = {**row, "manifest": manifests.index(made_with)}
                results.setdefault(stream, {}).setdefault(method, []).append(numbered)
    return {"title": title, "manifests": manifests, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = kept_rows(options.out)
    add_cells(rows, options.recipe, options.folder)
    title = read_recipe(options.recipe).title
    if options.out.is_file():
        title = json.loads(options.out.read_text(encoding="utf-8"))["title"]
    write_json(options.out, content_of(rows, title))


if __name__ == "__main__":
    main()
