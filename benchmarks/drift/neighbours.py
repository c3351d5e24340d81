"""Which rows and which distance the voice of nearest rows needs, on rows and seeds that no other table uses.

MOE_ADAPT_DATA=FOLDER python benchmarks/drift/neighbours.py --capymoa PYTHON \
    --out benchmarks/results/drift_neighbours.json

The default runs over every segment once. Then its voice of nearest rows is replaced by each variant and the
voices are weighed again: the other voices do not depend on it. CapyMOA's SAMkNN takes the same rows alone, in
PYTHON, an interpreter that has capymoa and moe_adapt (left out without it). The default was chosen here.
A run that was ended goes on.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numba
import numpy as np

from moe_adapt.drift.committee.neighbours import (
    FLOOR,
    NEAR,
    NEAREST,
    RECENT,
    SPREAD,
    STEP,
    WINDOW,
    relevance_of,
)
from moe_adapt.drift.committee.reliability import Reliability
from moe_adapt.drift.comparison.cells import write_json
from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams import DriftStream, real_stream, synthetic_stream
from moe_adapt.manifest import collect

#: Stream -> first rows of its segments, or seeds of its generator; rows of each.
REAL = {
    "covertype": ((120_000, 200_000, 280_000, 360_000, 440_000, 520_000), 5000),
    "nycflights": ((50_000, 150_000, 250_000), 5000),
    "phishing11k": ((4_000,), 5000),
    "bananas": ((4_000,), 1300),
}
SYNTHETIC = {
    "RBF_m": ((101, 102, 103), 8000),
    "RBF_f": ((101, 102), 8000),
    "LED_a": ((101, 102), 8000),
    "SEA_g": ((101, 102), 8000),
    "AGR_a": ((101, 102), 8000),
    "HYPER": ((101, 102), 8000),
    "RTG": ((101,), 6000),
}
#: Variant -> rows of its windows, power of the distance, scaled columns, columns weighted by relevance.
VARIANTS: dict[str, tuple[tuple[int, ...], int, bool, bool]] = {
    "500 rows, 1/distance (the former default)": ((RECENT,), 1, True, False),
    "500 rows": ((RECENT,), 2, True, False),
    "1,000 rows": ((WINDOW,), 2, True, False),
    "5,000 rows": ((5000,), 2, True, False),
    "500 and 1,000 rows": ((RECENT, WINDOW), 2, True, False),
    "500 rows, unscaled columns": ((RECENT,), 2, False, False),
    "500 rows, relevance": ((RECENT,), 2, True, True),
    "500 and 1,000 rows, relevance (the default)": ((RECENT, WINDOW), 2, True, True),
}
DEFAULT = list(VARIANTS)[-1]
UNIT = 100


def segments() -> Iterator[tuple[str, int, DriftStream]]:
    """Yield streams of the rows of every segment: family, first row or seed, stream."""
    for family, (starts, count) in REAL.items():
        for start in starts:
            stream = real_stream(family)
            rows = list(islice(iter(stream), start, start + count))
            yield family, start, replace(stream, source=_Rows(rows, stream.features), n_rows=count)
    for family, (seeds, count) in SYNTHETIC.items():
        for seed in seeds:
            yield family, seed, synthetic_stream(family, count, seed)


class _Rows:
    def __init__(self, rows: list[Any], features: tuple[str, ...]) -> None:
        self.rows, self.features = rows, features

    def __iter__(self) -> Iterator[tuple[list[Any], Any]]:
        for x, y in self.rows:
            yield [x.get(name) for name in self.features], y


def record(stream: DriftStream) -> dict[str, np.ndarray]:
    """Run the default; return voices [n, V, C], unscaled and scaled inputs [n, D], and labels [n]."""
    model = DriftMoEClassifier(nominal_attributes=tuple(sorted(stream.nominal)) or None, seed=1)
    voices = np.zeros((len(stream), 4, stream.n_classes))
    raw, scaled, labels = [], [], []
    for t, (x, y) in enumerate(stream):
        model.predict_one(x)
        if t:
            seen = model._engine.last_seen().voices
            voices[t, :, : seen.shape[1]] = seen
        model.learn_one(x, y)
        last = model._engine._own
        raw.append(np.nan_to_num(last["raw"]))
        scaled.append(last["vector"].copy())
        labels.append(model._engine.labels.number[y])
    n_inputs = len(raw[-1])
    padded = (np.stack([np.pad(row, (0, n_inputs - len(row))) for row in rows]) for rows in (raw, scaled))
    known = {"voices": voices[:, :, : max(labels) + 1], "labels": np.array(labels)}
    known["inputs"] = np.array([len(row) for row in raw])
    return dict(zip(("raw", "scaled"), padded, strict=True)) | known


@numba.njit(cache=False)
def _nearest(rows: Any, relevance: Any, t: int, first: int) -> Any:
    """Return places and squared distances of the rows from `first` on that are nearest to row `t`."""
    places, squares = np.full(NEAREST, -1), np.full(NEAREST, np.inf)
    for j in range(t - 1, first - 1, -1):
        total = 0.0
        for d in range(rows.shape[1]):
            gap = rows[j, d] - rows[t, d]
            total += gap * gap * relevance[d]
            if total >= squares[-1]:
                break
        at = NEAREST
        while at > 0 and total < squares[at - 1]:
            at -= 1
        for other in range(NEAREST - 1, at, -1):
            places[other], squares[other] = places[other - 1], squares[other - 1]
        if at < NEAREST:
            places[at], squares[at] = j, total
    return places, squares


def answers(seen: dict[str, np.ndarray], variant: str) -> np.ndarray:
    """Return what a variant of the voice says of every row [n, C]."""
    windows, power, scaled, relevant = VARIANTS[variant]
    rows = np.ascontiguousarray(seen["scaled" if scaled else "raw"], dtype=np.float32)
    labels, n_classes = seen["labels"], seen["voices"].shape[2]
    gaps, relevance = np.ones((2, rows.shape[1])), np.ones(rows.shape[1], dtype=np.float32)
    reliability, found = Reliability(len(windows)), np.zeros((len(rows), n_classes))
    for t, y in enumerate(labels):
        own = np.full((len(windows), n_classes), FLOOR)
        for answer, most in zip(own, windows, strict=True):
            places, squares = _nearest(rows, relevance, t, max(0, t - most))
            known = places >= 0
            weights = 1.0 / (squares[known] ** (power / 2) + NEAR)
            np.add.at(answer, labels[places[known]], weights)
        own /= own.sum(axis=1, keepdims=True)
        found[t] = reliability.odds**6 @ own
        reliability.update(own.argmax(axis=1) == y, 1.0)
        same = labels[places[known]] == y
        if relevant and same.any() and not same.all():
            n_inputs = seen["inputs"][t]
            for side, kind in enumerate((same, ~same)):
                gap = (rows[places[known][kind][0]] - rows[t]).astype(np.float64)[:n_inputs]
                gaps[side, :n_inputs] += (gap * gap + SPREAD - gaps[side, :n_inputs]) * STEP
            relevance[:n_inputs] = relevance_of(gaps[:, :n_inputs])
    return found / found.sum(axis=1, keepdims=True)


def right_of(voices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return where the committee of some voices [n, V, C] is right [n]."""
    reliability, found = Reliability(voices.shape[1]), np.zeros(len(labels), dtype=bool)
    for t, y in enumerate(labels):
        found[t] = (reliability.odds**3 @ voices[t]).argmax() == y
        reliability.update(voices[t].argmax(axis=1) == y, 1.0)
    return found


def samknn(python: str) -> dict[str, dict[str, list[int]]]:
    """Return the right answers of CapyMOA's SAMkNN per unit: family -> segment -> units."""
    command = [python, str(Path(__file__).resolve()), "--samknn"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_samknn() -> None:
    from moe_adapt.drift.comparison.capymoa import CAPYMOA

    found: dict[str, dict[str, list[int]]] = {}
    for family, segment, stream in segments():
        model, right = CAPYMOA["capymoa_samknn"](stream, 1), []
        for x, y in stream:
            right.append(model.predict_one(x) == y)
            model.learn_one(x, y)
        found.setdefault(family, {})[str(segment)] = units(np.array(right))
    print(json.dumps(found))


def units(right: np.ndarray) -> list[int]:
    """Return right answers per `UNIT` rows."""
    return right.reshape(-1, UNIT).sum(axis=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--capymoa", metavar="PYTHON", help="an interpreter that has capymoa")
    parser.add_argument("--samknn", action="store_true", help="print SAMkNN's right answers and end")
    options = parser.parse_args()
    if options.samknn:
        print_samknn()
        return
    results: dict[str, dict[str, dict[str, dict[str, list[int]]]]] = {}
    made_with = collect()
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))["results"]
    for family, segment, stream in segments():
        if str(segment) in results.get(family, {}).get(DEFAULT, {"alone": {}})["alone"]:
            continue
        seen = record(stream)
        labels, voices = seen["labels"], seen["voices"]
        for variant in VARIANTS:
            own = answers(seen, variant)
            if variant == DEFAULT:
                other = float(np.mean(own[1:].argmax(1) != voices[1:, 3].argmax(1)))
                assert other < 0.05, f"{other} of the answers are others, more than ties in double precision"
            right = right_of(np.concatenate([voices[:, :3], own[:, None]], axis=1), labels)
            place = results.setdefault(family, {}).setdefault(variant, {"committee": {}, "alone": {}})
            place["committee"][str(segment)] = units(right)
            place["alone"][str(segment)] = units(own.argmax(axis=1) == labels)
        write_json(options.out, {"unit": UNIT, "results": results, "manifest": made_with})
        print(family, segment, flush=True)
    if options.capymoa:
        for family, own in samknn(options.capymoa).items():
            results[family]["capymoa_samknn"] = {"alone": own}
    write_json(options.out, {"unit": UNIT, "results": results, "manifest": made_with})


if __name__ == "__main__":
    main()
