"""The GPU benchmark of the kernels, rehearsed on the CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels" / "gpu.py"
SMALL = [
    *("--device", "cpu", "--tokens", "12", "--widths", "32", "--ranks", "8", "--experts", "4"),
    *("--slots", "2", "--repeats", "2", "--warmup", "1"),
]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("kernels_gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rehearsal(gpu, tmp_path, monkeypatch, capsys):
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *SMALL, "--dtypes", "float32", "--out", str(out)])
    gpu.main()
    report = json.loads(out.read_text())
    assert [cell["pass"] for cell in report["results"]] == ["forward", "both", "decode"]
    for cell in report["results"]:
        assert cell["rows"].keys() | cell["absent"].keys() == gpu.COMPETITORS.keys()
        errors = [row["error"] for name, row in cell["rows"].items() if name not in gpu.UNROUTED]
        assert len(errors) >= 4 and max(errors) < 1e-5
        assert "CUDA" in cell["absent"]["triton"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--show", str(out)])
    capsys.readouterr()
    gpu.main()
    table = capsys.readouterr().out
    assert "| both | 32 | 12 | 8 | 4 | 2 |" in table and "| 0 | 0 | 80% | not measured |" in table


def test_the_floor_is_that_of_the_roofline(gpu):
    cell = {"tokens": 8192, "width": 4096, "rank": 16, "experts": 8, "slots": 2, "dtype": "bfloat16"}
    seconds = gpu.floor_seconds(cell | {"pass": "forward"}, 798e12, 3.0e12)
    assert seconds * 1e6 == pytest.approx(68.5, abs=0.1)
    both = gpu.floor_seconds(cell | {"pass": "both"}, 798e12, 3.0e12)
    assert (both - seconds) * 1e6 == pytest.approx(93, abs=1)


def test_reached_targets_are_counted(gpu):
    def row(microseconds, to_floor=None):
        return {"microseconds": microseconds, "to_floor": to_floor}

    place = {"width": 4096, "tokens": 2048, "rank": 8, "experts": 8, "slots": 2, "floor_microseconds": 10.0}
    rows = {"triton": row(12.0, 1.2), "stacked": row(14.0), "expert_loop": row(60.0), "single_lora": row(6.0)}
    passes = ("forward", "both", "decode")
    text = gpu.shown([place | {"pass": name, "rows": rows, "absent": {}} for name in passes])
    assert "the floor from 2048 tokens on | 1 | 1 | 100% | pass |" in text
    assert "as fast as stacked | 1 | 0 | 80% | fail |" in text
    assert "as fast as expert_loop | 1 | 1 | 80% | pass |" in text
    assert "as fast as grouped_mm | 0 | 0 | 80% | not measured |" in text
    assert "one LoRA of rank r | 1 | 0 | 100% | fail |" in text


def test_the_grid(gpu, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    cells = gpu.cells(gpu.parse())
    assert len(cells) == 2 * 72 + 54
    assert {cell["tokens"] for cell in cells if cell["pass"] == "decode"} == {1, 16, 64}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no CUDA device" in capsys.readouterr().err
