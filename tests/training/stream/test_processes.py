"""Streams in two processes (gloo): the sums, the refusals, and runs that end as those of one process do."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import ExperienceReplay, FineTuning
from moe_adapt.training.stream import StreamRunner
from tests.training.stream.process_programs import LEARNERS
from tests.training.tiny import tiny_bert

ROOT = Path(__file__).parents[3]

#: Some distributions install a package called `tests`; ours is to be found.
START = """\
import runpy, sys, types

root = sys.argv.pop(1)
sys.path.insert(0, root)
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = [f"{root}/tests"]
runpy.run_module("tests.training.stream.process_programs", run_name="__main__", alter_sys=False)
"""
SUMS = """\
import sys
import torch
from torch import distributed
from moe_adapt.optim import ExpertUsage, InputMoment

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
gates = rows[:, :3].softmax(-1)
for max_exact in (64, 2):
    moment = InputMoment(6, max_exact, sketch_rank=6)
    all_usage, usage = ExpertUsage(3), ExpertUsage(3)
    for step in range(2):
        part = slice(20 * step, 20 * step + 20)
        all_usage.observe(gates[part], rows[part])
        mine = slice(20 * step + 10 * rank, 20 * step + 10 * rank + 10)
        moment.observe(rows[mine])
        usage.observe(gates[mine], rows[mine])
        with moment.summed(), usage.summed():  # reading in the middle of a task counts nothing twice
            seen = rows[: 20 * step + 20]
            if moment.exact:
                torch.testing.assert_close(moment.matrix("current"), seen.t() @ seen / len(seen))
            assert abs(moment.trace("current") - float(seen.square().sum()) / len(seen)) < 1e-4
            assert moment.rows_seen("current") == 20 * (step + 1)
            torch.testing.assert_close(usage.current, gates[: len(seen)].double().mean(0))
    moment.end_task()
    usage.end_task()
    assert moment.rows_seen("past") == 40 and moment.rows_seen("current") == 0
    assert abs(moment.trace("past") - float(rows.square().sum()) / 40) < 1e-4
    if moment.exact:
        torch.testing.assert_close(moment.matrix("past"), rows.t() @ rows / 40)
    else:  # the same in both processes, and no direction longer than it is
        sketch = moment.matrix("past")
        copy = sketch.clone()
        distributed.broadcast(copy, src=0)
        assert torch.equal(copy, sketch)
        assert torch.linalg.eigvalsh(rows.t() @ rows / 40 - sketch).min() > -1e-4
    all_usage.end_task()
    torch.testing.assert_close(usage.importance, all_usage.importance)
print("equal", flush=True)
distributed.barrier()
distributed.destroy_process_group()
"""


def test_sums_are_those_of_all_rows(tmp_path):
    commands = [[sys.executable, "-c", SUMS, str(rank), str(tmp_path / "meet")] for rank in range(2)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    for process in [subprocess.Popen(command, **options) for command in commands]:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.strip().endswith("equal")


@pytest.mark.parametrize(
    ("make", "trainer", "words"),
    [
        (
            FineTuning,
            {"strategy": "fsdp", "devices": 2},
            "one device or with the strategy ddp, not with 'fsdp'",
        ),
        (FineTuning, {"strategy": "deepspeed"}, "not with 'deepspeed'"),
        (ExperienceReplay, {"strategy": "ddp", "devices": 2}, "it runs in one process.*Several.*care.*same"),
    ],
)
def test_what_processes_cannot_share_is_refused(make, trainer, words, tmp_path):
    runner = StreamRunner(tmp_path / "run", trainer=trainer)
    with pytest.raises(UserError, match=words):
        runner.run(make(ToyEncoder()), gaussian_stream())
    assert not (tmp_path / "run").exists()


def start(out, names, size):
    """Start the program `size` times, connected, and wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", START, str(ROOT), str(out), *names]
    connected = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(size),
    }
    running = []
    for rank in range(size):
        environment = {**os.environ, **({**connected, "LOCAL_RANK": str(rank)} if size > 1 else {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
        running.append(subprocess.Popen(command, env=environment, **options))
    for process in running:
        text, _ = process.communicate()
        assert process.returncode == 0, text[-4000:]
    return [torch.load(out / f"found-{size}-{rank}.pt") for rank in range(size)]


@pytest.mark.slow
def test_two_processes_learn_streams_as_one_does(tmp_path):
    names = list(LEARNERS)
    [alone] = start(tmp_path, names, 1)
    first, second = start(tmp_path, names, 2)
    for name in names:
        one, two, other = alone[name], first[name], second[name]
        assert two["steps"] == one["steps"], name
        assert torch.equal(two["correct"], other["correct"]), name
        assert two["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            assert torch.equal(two["state"][key].nan_to_num(), other["state"][key].nan_to_num()), (name, key)
            if value.is_floating_point():
                torch.testing.assert_close(
                    two["state"][key],
                    value,
                    rtol=2e-2,
                    atol=2e-3,
                    equal_nan=True,
                    msg=lambda m, k=key: f"{k}: {m}",
                )
        allowed = 1 if name in ("same", "dymoe", "olora", "care") else 0
        assert (two["correct"] - one["correct"]).abs().max() <= allowed, name
        result = json.loads((tmp_path / "runs-2" / name / "result.json").read_text())
        assert result["manifest"]["processes"] == 2
        assert result["accuracy_matrix"]["correct"] == two["correct"].tolist()


def command(folder, name, *options):
    """Run `moe-adapt stream`, and return what it found and what it printed."""
    words = [sys.executable, str(folder / "program.py"), "stream", "--config", "stream/text"]
    words += ["--config", "learner/fine_tuning", "--backbone.backbone", str(folder / "bert")]
    words += ["--backbone.pooling", "mean", "--stream.increment", "2", "--out", str(folder / name)]
    words += [f"--stream.{split}={folder / 'rows.jsonl'}" for split in ("train", "test")] + list(options)
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / name / "result.json").read_text()), done.stdout


@pytest.mark.slow
def test_the_command_starts_the_other_process_itself(tmp_path):
    (tmp_path / "program.py").write_text("import sys\nfrom moe_adapt.cli import main\nsys.exit(main())\n")
    tiny_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [{"text": f"{word} number {i}", "label": word} for i in range(16) for word in ("a", "b", "c", "d")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, _ = command(tmp_path, "one", "--learner.batch_size", "16")
    devices = ("--runner.trainer", "{devices: 2, strategy: ddp}")
    two, printed = command(tmp_path, "two", "--learner.batch_size", "8", *devices)
    assert two["manifest"]["processes"] == 2
    assert printed.count("final_accuracy") == 1, "one process speaks"
    total = sum(one["accuracy_matrix"]["total"])
    for metric, value in one["metrics"].items():
        assert two["metrics"][metric] == pytest.approx(value, abs=2 / total), metric
    assert (tmp_path / "two" / "report.html").is_file()
