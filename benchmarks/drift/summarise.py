"""Turn the cells of a comparison into one committed file.

python benchmarks/drift/summarise.py --recipe benchmarks/drift/streams.yaml --folder RUN \
    --out benchmarks/results/drift_streams.json

With `--add`, methods that the file has and the folder has not stay as they are, with the manifest they were
made
with: rows of rivals hold as long as stream and protocol are the same.
"""

import argparse
import json
from pathlib import Path

from moe_adapt.drift.comparison.cells import write_json
from moe_adapt.drift.comparison.compare import MANIFEST_FILE, collect_results
from moe_adapt.drift.comparison.recipe import read_recipe
from moe_adapt.manifest import collect

KEPT = ("seed", "rows", "classes", "window", "drifts", "bayes", "accuracy", "kappa", "kappa_m", "kappa_t")
MORE = ("unanswered", "cpu_us_per_row", "model_mb", "recovery", "events")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--add", action="store_true", help="keep what the file holds of other methods")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    results = {
        stream: {
            method: [{key: cell[key] for key in (*KEPT, *MORE)} for cell in cells]
            for method, cells in own.items()
        }
        for stream, own in collect_results(recipe, options.folder).items()
    }
    manifest = options.folder / MANIFEST_FILE
    made_with = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else collect()
    made_by = {"": made_with}
    if options.add and options.out.is_file():
        old = json.loads(options.out.read_text(encoding="utf-8"))
        made_by = {**old.get("manifests", {"": old["manifest"]}), options.recipe.name: made_with}
        known = {stream: {**own, **results.get(stream, {})} for stream, own in old["results"].items()}
        results = known | {stream: own for stream, own in results.items() if stream not in known}
    content = {
        "title": recipe.title,
        "recipe": options.recipe.name,
        "results": results,
        "manifest": made_with,
        "manifests": made_by,
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()
