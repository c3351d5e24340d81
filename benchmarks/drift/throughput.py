"""Rows per second of DriftMoE's tree pool, of the same learner over River's trees, and of River's ensembles.

Every variant predicts and learns the same rows, in turns of a few hundred, so that all of them meet the same
load of the machine; CPU time of this one thread. Ratios are medians over the turns.

    OMP_NUM_THREADS=1 python benchmarks/drift/throughput.py --out benchmarks/results/drift_throughput.json
"""

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from moe_adapt.learners.driftmoe import DriftMoEClassifier
from moe_adapt.streams.drift import DriftStream, synthetic_stream
from moe_adapt.training.drift.baselines import BASELINES
from moe_adapt.training.drift.cells import write_json
from moe_adapt.training.manifest import collect

STREAMS = ("LED_a", "SEA_a", "AGR_a", "RBF_m", "HYPER")
POOL = "DriftMoE, pool"


def variants(stream: DriftStream) -> dict[str, Any]:
    nominal = tuple(sorted(stream.nominal)) or None
    common = {"seed": 1, "nominal_attributes": nominal}
    return {
        POOL: DriftMoEClassifier(**common),
        "DriftMoE, River trees": DriftMoEClassifier(backend="river", **common),
        "paper preset, pool": DriftMoEClassifier.paper(**common),
        "paper preset, River trees": DriftMoEClassifier.paper(backend="river", **common),
        "task mode, pool": DriftMoEClassifier(mode="task", **common),
        "hoeffding_tree": BASELINES["hoeffding_tree"](stream, 1),
        "arf10": BASELINES["arf10"](stream, 1),
        "srp10": BASELINES["srp10"](stream, 1),
        "lev_bag10": BASELINES["lev_bag10"](stream, 1),
    }


def measure(stream: DriftStream, turns: int, warm: int, per_turn: int) -> dict[str, list[float]]:
    """Return microseconds per row of every turn after the first ones."""
    models, found = variants(stream), {}
    rows = iter(stream)
    for turn in range(warm + turns):
        part = list(islice(rows, per_turn))
        for name, model in models.items():
            start = time.process_time()
            for x, y in part:
                model.predict_one(x)
                model.learn_one(x, y)
            seconds = time.process_time() - start
            if turn >= warm:
                found.setdefault(name, []).append(1e6 * seconds / per_turn)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument("--rows", type=int, default=250, help="rows per turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    streams: dict[str, Any] = {}
    for name in STREAMS:
        stream = synthetic_stream(name, 4 * (options.turns + options.warm) * options.rows)
        times = measure(stream, options.turns, options.warm, options.rows)
        ours = times[POOL]
        streams[name] = {
            variant: {
                "us_per_row": statistics.median(own),
                "rows_per_second": 1e6 / statistics.median(own),
                "ratio": statistics.median(b / a for a, b in zip(ours, own, strict=True)),
            }
            for variant, own in times.items()
        }
        print(name, {v: round(r["ratio"], 2) for v, r in streams[name].items()}, flush=True)
    settings = {"turns": options.turns, "warm": options.warm, "rows": options.rows}
    write_json(options.out, {"settings": settings, "streams": streams, "manifest": collect()})


if __name__ == "__main__":
    main()
