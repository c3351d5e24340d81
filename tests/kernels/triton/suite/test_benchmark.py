"""The GPU benchmark runs the kernels: forward, backward and a few tokens, on one tiny cell."""

import json
import runpy
import sys
from pathlib import Path

from tests.kernels.triton.setting import DEVICE, MARKS

pytestmark = MARKS

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "kernels" / "gpu.py"
CELL = [
    *("--device", DEVICE, "--tokens", "3", "--widths", "16", "--ranks", "2", "--experts", "3"),
    *("--slots", "2", "--dtypes", "float32", "--repeats", "2", "--warmup", "0"),
]


def test_every_pass_of_the_benchmark(monkeypatch, tmp_path, capsys):
    out = tmp_path / "result.json"
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *CELL, "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    cells = json.loads(out.read_text())["results"]
    assert [cell["pass"] for cell in cells] == ["forward", "both", "decode"]
    assert all(cell["rows"]["triton"]["error"] < 1e-5 for cell in cells)
    assert "times one LoRA of rank r | 1 |" in capsys.readouterr().out
