"""Finished runs beside one another."""

import json
from pathlib import Path

import pytest

from moe_adapt.runs.comparison import Run, compare_pairs


def write_run(
    folder: Path, method: str, seed: int, accuracy: float, status: str = "finished", rows: str = "a.csv"
) -> Path:
    folder.mkdir()
    tuner = {"class_path": "moe_adapt.tuner.RoutedLoraConfig", "init_args": {"method": method}}
    options = {"model": {"init_args": {"tuner": tuner}}, "data": {"init_args": {"train": rows}}}
    (folder / "moe_adapt_config.yaml").write_text(json.dumps(options))
    manifest = {
        "status": status,
        "seed": seed,
        "metrics": {"val/acc": accuracy, "train/loss": 1.0},
        "result": {"metric": "val/acc", "value": accuracy},
        "trainable_parameters": 10,
        "wall_seconds": 1.5,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_runs_are_paired_by_seed(moe_adapt, tmp_path):
    values = {"lora": [0.80, 0.82, 0.81], "dynmole": [0.90, 0.921, 0.912]}
    folders = [
        write_run(tmp_path / f"{method}{seed}", method, seed, value)
        for method, row in values.items()
        for seed, value in enumerate(row)
    ]
    done = moe_adapt("compare", *folders, "--to", "c.html")
    assert done.code == 0, done.err
    assert "plain LoRA minus DynMoLE: -0.1010" in done.out and "DynMoLE higher" in done.out
    assert "3 shared seeds" in Path("c.html").read_text() and "different rows" not in done.out
    elsewhere = write_run(tmp_path / "elsewhere", "lora", 3, 0.9, rows="b.csv")
    assert "the runs have different rows" in moe_adapt("compare", folders[0], elsewhere).out
    assert "exists already" in moe_adapt("compare", *folders, "--to", "c.html").err


def test_what_does_not_compare_is_told(moe_adapt, tmp_path):
    good = write_run(tmp_path / "a", "lora", 0, 0.5)
    broken = write_run(tmp_path / "b", "lora", 1, 0.5, status="interrupted")
    assert "not finished" in moe_adapt("compare", good, broken).err
    assert "at least two runs" in moe_adapt("compare", good).err
    assert "not the folder of a run" in moe_adapt("compare", good, tmp_path).err
    other = write_run(tmp_path / "c", "lora", 1, 0.5)
    assert "Did you mean 'val/acc'" in moe_adapt("compare", good, other, "--metric", "val/ac").err


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        ([0.5, 0.501, 0.499], "equal within 0.01"),
        ([0.4, 0.6, 0.5], "not told apart"),
        ([0.6, 0.61, 0.6], "a higher"),
    ],
)
def test_verdicts(first, verdict):
    runs = [Run(Path(), "a", seed, {"m": value}, None, None) for seed, value in enumerate(first)]
    runs += [Run(Path(), "b", seed, {"m": 0.5}, None, None) for seed in range(3)]
    (pair,) = compare_pairs(runs, "m", 0.01)
    assert pair.verdict == verdict
    (single,) = compare_pairs([runs[0], runs[3]], "m", 0.01)
    assert single.interval is None and "one seed" in single.verdict
