"""Turn the cells of a comparison into one committed file.

python benchmarks/drift/summarise.py --recipe benchmarks/drift/streams.yaml --folder RUN \
    --out benchmarks/results/drift_streams.json
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
    content = {
        "title": recipe.title,
        "recipe": options.recipe.name,
        "results": results,
        "manifest": made_with,
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()
