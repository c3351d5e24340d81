"""DriftMoERegressor beside River's regressors, test-then-train, on River's Friedman streams.

OMP_NUM_THREADS=1 python benchmarks/drift/regression.py --out benchmarks/results/drift_regression.json

The table of docs/drift.md is printed at the end; a test compares the two.

Mean absolute error over all rows. Friedman's function drifts in one region after another (`lea`) or abruptly
everywhere (`gra`); its rows have the seed of the models. Settings were not chosen on these rows.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from river import forest, linear_model, preprocessing, tree
from river.datasets import synth

from moe_adapt.drift.comparison.cells import write_json
from moe_adapt.drift.driftmoe import DriftMoERegressor
from moe_adapt.manifest import collect

SEEDS = (1, 2, 3)
ROWS = 1000


def friedman(kind: str, seed: int) -> list:
    position = {"lea": (250, 500, 750), "gra": (350, 700)}[kind]
    return list(synth.FriedmanDrift(drift_type=kind, position=position, seed=seed).take(ROWS))


STREAMS = {
    "Friedman lea": lambda seed: friedman("lea", seed),
    "Friedman gra": lambda seed: friedman("gra", seed),
}
METHODS = {
    "DriftMoERegressor": lambda seed: DriftMoERegressor(seed=seed),
    "ARFRegressor(10)": lambda seed: forest.ARFRegressor(n_models=10, seed=seed),
    "HoeffdingAdaptiveTreeRegressor": lambda seed: tree.HoeffdingAdaptiveTreeRegressor(seed=seed),
    "scaled LinearRegression": lambda seed: preprocessing.StandardScaler() | linear_model.LinearRegression(),
}


def run(model, rows: list) -> tuple[float, float]:
    """Return the mean absolute error and the CPU time per row in microseconds."""
    errors, start = [], time.process_time()
    for x, y in rows:
        errors.append(abs(model.predict_one(x) - y))
        model.learn_one(x, y)
    return float(np.mean(errors)), 1e6 * (time.process_time() - start) / len(rows)


def table(content: dict) -> list[str]:
    """Return the lines of a Markdown table: mean and standard deviation over seeds, the least error bold."""
    methods = list(METHODS)
    lines = ["| mean absolute error | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for stream, found in content["results"].items():
        means = {method: statistics.fmean(found[method]["mae"]) for method in methods}
        cells = []
        for method in methods:
            spread = statistics.stdev(found[method]["mae"])
            text = f"{means[method]:.3f}" + (f" ± {spread:.3f}" if spread else "")
            cells.append(f"**{text}**" if means[method] == min(means.values()) else text)
        lines.append(f"| {stream}, {content['rows'][stream]:,} rows | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results: dict = {}
    for stream, make in STREAMS.items():
        for method, build in METHODS.items():
            found = [run(build(seed), make(seed)) for seed in SEEDS]
            results.setdefault(stream, {})[method] = {
                "mae": [float(f"{error:.6g}") for error, _ in found],
                "cpu_us_per_row": round(statistics.median(us for _, us in found), 1),
            }
            print(stream, method, results[stream][method], flush=True)
    content: dict = {"seeds": SEEDS, "rows": {name: len(make(1)) for name, make in STREAMS.items()}}
    content |= {"results": results, "manifest": collect()}
    write_json(options.out, content)
    print("\n".join(table(content)))


if __name__ == "__main__":
    main()
