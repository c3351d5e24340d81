"""Runs beside one another: one table of any folders of ``fit`` and ``stream``, paired where seeds agree.

Runs are grouped by what they are (method or learner); a group's value is its mean over runs. Two groups with
the same seeds are compared pair by pair (`moe_adapt.evaluation.equivalence`): mean difference with its 95 %
interval, and whether they are shown to be equal within a margin, or different, or neither.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_adapt.errors import UserError
from moe_adapt.evaluation.equivalence import paired_difference
from moe_adapt.runs.folder import CONFIG_FILE

__all__ = ["Pair", "Run", "compare_pairs", "read_run"]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: Its folder.
        name: What it is: method or learner.
        seed: Its seed.
        metrics: What it reached.
        parameters: Trained parameters; None if unknown.
        seconds: Time of training; None if unknown.
        rows: Where its rows came from, as text; of runs of ``stream`` nothing.
    """

    folder: Path
    name: str
    seed: int | None
    metrics: dict[str, float]
    parameters: int | None
    seconds: float | None
    rows: str = ""


@dataclass(frozen=True)
class Pair:
    """Two groups over the same seeds.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        seeds: How many seeds they share.
        difference: Mean of first minus second.
        interval: Half the width of the 95 % interval; None with one seed.
        verdict: What that says, in words.
    """

    first: str
    second: str
    seeds: int
    difference: float
    interval: float | None
    verdict: str


def read_run(folder: str | Path) -> Run:
    """Read what a run of ``fit`` or ``stream`` reached.

    Raises:
        UserError: If the folder is not that of a finished run.
    """
    folder = Path(folder)
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no {CONFIG_FILE}.")
    options = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    if "learner" in options:
        return _stream(folder)
    manifest = _json(folder / "manifest.json")
    if manifest.get("status") != "finished":
        raise UserError(f"the run in {folder} is not finished (status {manifest.get('status')!r}).")
    result = manifest.get("result") or {}
    metrics = dict(manifest.get("metrics") or {})
    if result.get("value") is not None:
        metrics[result["metric"]] = result["value"]
    model, data = ((options.get(part) or {}).get("init_args") or {} for part in ("model", "data"))
    tuner = model.get("tuner") or {}
    kept = {key: value for key, value in metrics.items() if key.startswith(("val/", "test/"))}
    return Run(
        folder,
        tuner.get("init_args", tuner).get("method", "head only"),
        manifest.get("seed"),
        kept,
        manifest.get("trainable_parameters"),
        manifest.get("wall_seconds"),
        json.dumps([data.get(split) for split in ("train", "validation", "test")], default=str),
    )


def _stream(folder: Path) -> Run:
    result = _json(folder / "result.json")
    if result.get("status") != "finished":
        raise UserError(f"the run in {folder} is not finished; go on with --resume first.")
    said = result["manifest"]
    costs = result.get("costs") or {}
    return Run(
        folder,
        str(said["learner"]["learner"]),
        said.get("seed"),
        {key: value for key, value in result["metrics"].items() if isinstance(value, (int, float))},
        costs.get("trainable_parameters"),
        costs.get("seconds"),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}: the run is not finished, or its files were moved.")
    return json.loads(path.read_text(encoding="utf-8"))


def compare_pairs(runs: Sequence[Run], metric: str, margin: float) -> list[Pair]:
    """Compare every two groups over the seeds that they share.

    Args:
        runs: The runs.
        metric: Name of the metric.
        margin: Difference below which two are equal for practical purposes.
    """
    groups: dict[str, dict[Any, float]] = {}
    for run in runs:
        if metric in run.metrics:
            groups.setdefault(run.name, {})[run.seed] = run.metrics[metric]
    names = list(groups)
    found = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            shared = [seed for seed in groups[first] if seed in groups[second]]
            if shared:
                values = [(groups[first][seed], groups[second][seed]) for seed in shared]
                found.append(_pair(first, second, values, margin))
    return found


def _pair(first: str, second: str, values: list[tuple[float, float]], margin: float) -> Pair:
    found = paired_difference([one for one, _ in values], [other for _, other in values], margin)
    verdict = found.verdict(first, second, margin)
    return Pair(first, second, found.pairs, found.mean, found.half_width, verdict)
