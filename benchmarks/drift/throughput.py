r"""Rows per second of DriftMoE, compiled and in numpy, of its modes, and of River's ensembles.

Every variant predicts and learns the same rows, in turns of a few hundred, so that all of them meet the same
load of the machine; CPU time of this one thread. Ratios are medians over the turns. With `--capymoa`, a tree
and a forest of CapyMOA take the same turns in a process of their own. CoverType, 54 columns, is among the
streams if `MOE_ADAPT_DATA` is set. Two more processes tell how long it takes to the first row, with nothing
compiled yet and later.

    OMP_NUM_THREADS=1 python benchmarks/drift/throughput.py --capymoa FOLDER/bin/python --out \
        benchmarks/results/drift_throughput.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from moe_adapt.drift.comparison.baselines import BASELINES
from moe_adapt.drift.comparison.cells import write_json
from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams import DriftStream, real_stream, synthetic_stream
from moe_adapt.manifest import collect

STREAMS = ("LED_a", "SEA_a", "AGR_a", "RBF_m", "HYPER")
WIDE = "covertype"
OURS = "default, compiled"

START = """
import json, time
from moe_adapt.drift.driftmoe import DriftMoEClassifier
model, seconds = DriftMoEClassifier(seed=1, backend="compiled"), {}
for t in range(64):
    x = {"a": t % 7 / 7, "b": t % 5 / 5, "word": "uvw"[t % 3]}
    model.predict_one(x)
    model.learn_one(x, t % 2)
    if t in (0, 63):
        seconds[f"row {t + 1}"] = round(time.process_time(), 2)
print(json.dumps(seconds))
"""


def starts() -> dict[str, dict[str, float]]:
    """Return CPU seconds of a process until it has learned its first row and its 64th, imports included."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        found = {}
        for which in ("nothing compiled yet", "later process"):
            done = subprocess.run(
                [sys.executable, "-c", START], env=environment, check=True, capture_output=True, text=True
            )
            found[which] = json.loads(done.stdout)
    return found


def variants(stream: DriftStream) -> dict[str, Any]:
    nominal = tuple(sorted(stream.nominal)) or None
    common = {"seed": 1, "nominal_attributes": nominal}
    return {
        OURS: DriftMoEClassifier(backend="compiled", **common),
        "default, numpy": DriftMoEClassifier(backend="array", **common),
        "data mode, pool": DriftMoEClassifier(mode="data", **common),
        "data mode, River trees": DriftMoEClassifier(mode="data", backend="river", **common),
        "paper preset, pool": DriftMoEClassifier.paper(**common),
        "paper preset, River trees": DriftMoEClassifier.paper(backend="river", **common),
        "task mode, pool": DriftMoEClassifier(mode="task", **common),
        "hoeffding_tree": BASELINES["hoeffding_tree"](stream, 1),
        "arf10": BASELINES["arf10"](stream, 1),
        "srp10": BASELINES["srp10"](stream, 1),
        "lev_bag10": BASELINES["lev_bag10"](stream, 1),
    }


class CapyMoa:
    """CapyMOA's learners in another process.

    Args:
        python: An interpreter that has capymoa, and Java beside it.
        stream: What is learned.
        rows: Its first rows.
        per_turn: Rows of a turn.
        folder: Where the rows are handed over.
    """

    def __init__(self, python: str, stream: DriftStream, rows: list[Any], per_turn: int, folder: str) -> None:
        nominal = {
            name: sorted({x[name] for x, _ in rows}) for name in stream.features if name in stream.nominal
        }
        content = {
            "features": stream.features,
            "nominal": {name: [str(value) for value in values] for name, values in nominal.items()},
            "n_classes": stream.n_classes,
            "per_turn": per_turn,
            "rows": [
                ([nominal[name].index(v) if name in nominal else v for name, v in x.items()], y)
                for x, y in rows
            ],
        }
        path = Path(folder) / "rows.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        script = Path(__file__).with_name("capymoa_rows.py")
        self.process = subprocess.Popen(
            [python, str(script), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._read()["version"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("CapyMOA's process ended: is capymoa installed there, and Java?")
        return json.loads(line)

    def turn(self) -> dict[str, float]:
        """Return the seconds that each learner took for the next rows."""
        assert self.process.stdin is not None
        self.process.stdin.write("next\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)


def measure(
    stream: DriftStream, turns: int, warm: int, per_turn: int, python: str | None
) -> tuple[dict[str, list[float]], str | None]:
    """Return microseconds per row of every turn after the first ones, and CapyMOA's version."""
    models = variants(stream)
    found: dict[str, list[float]] = {}
    rows = list(islice(iter(stream), (warm + turns) * per_turn))
    with tempfile.TemporaryDirectory() as folder:
        other = CapyMoa(python, stream, rows, per_turn, folder) if python else None
        for turn in range(warm + turns):
            part = rows[turn * per_turn : (turn + 1) * per_turn]
            seconds = {}
            for name, model in models.items():
                start = time.process_time()
                for x, y in part:
                    model.predict_one(x)
                    model.learn_one(x, y)
                seconds[name] = time.process_time() - start
            if other is not None:
                seconds |= other.turn()
            if turn >= warm:
                for name, own in seconds.items():
                    found.setdefault(name, []).append(1e6 * own / per_turn)
        if other is not None:
            other.close()
    return found, other and other.version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument("--rows", type=int, default=250, help="rows per turn")
    parser.add_argument(
        "--capymoa", metavar="PYTHON", help="an interpreter that has capymoa; left out without"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = (options.turns + options.warm) * options.rows
    begun = starts()
    print(begun, flush=True)
    streams: dict[str, Any] = {}
    for name in (*STREAMS, *((WIDE,) if os.environ.get("MOE_ADAPT_DATA") else ())):
        stream = real_stream(name, count) if name == WIDE else synthetic_stream(name, 4 * count)
        times, version = measure(stream, options.turns, options.warm, options.rows, options.capymoa)
        ours = times[OURS]
        streams[name] = {
            variant: {
                "us_per_row": statistics.median(own),
                "rows_per_second": 1e6 / statistics.median(own),
                "ratio": statistics.median(b / a for a, b in zip(ours, own, strict=True)),
            }
            for variant, own in times.items()
        }
        print(name, {v: round(r["ratio"], 2) for v, r in streams[name].items()}, flush=True)
    settings = {"turns": options.turns, "warm": options.warm, "rows": options.rows, "capymoa": version}
    content = {"settings": settings, "starts": begun, "streams": streams, "manifest": collect()}
    write_json(options.out, content)


if __name__ == "__main__":
    main()
