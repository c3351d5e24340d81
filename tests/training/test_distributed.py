"""Two processes on the CPU (gloo) train as one does, auxiliary losses included."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_adapt.training.checkpoint import read_checkpoint
from tests.training.tiny import tiny_bert

PROGRAM = "import sys\nfrom moe_adapt.cli import main\nsys.exit(main())\n"

GRADIENTS = """\
import sys

sys.path.insert(0, ROOT)
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tiny import adapted, batch

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
inputs = [batch(rows=2, left_padding=padding) for padding in (1, 4)]


class Step(torch.nn.Module):  # as Lightning does it: the whole step runs inside the wrapper's forward
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(**inputs).loss + 10 * self.model.base_model.aux_loss()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


expected = {}
for one in inputs:
    step = Step(adapted("dynmole").train())
    step(one).backward()
    for name, gradient in gradients(step).items():
        expected[name] = expected.get(name, 0) + gradient / 2
step = Step(adapted("dynmole").train())
parallel = DistributedDataParallel(step)  # has to outlive the backward pass, in which it averages
parallel(inputs[rank]).backward()
found = gradients(step)
assert found.keys() == expected.keys()
for name in expected:
    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
routers = [name for name in expected if "router" in name]
assert routers and all(expected[name].abs().sum() > 0 for name in routers)
print("equal")
"""


@pytest.mark.slow
def test_gradients_of_two_processes_are_the_mean_of_theirs(tmp_path):
    program = GRADIENTS.replace("ROOT", repr(str(Path(__file__).parents[1] / "tuner")))
    commands = [[sys.executable, "-c", program, str(rank), str(tmp_path / "meet")] for rank in range(2)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.strip().endswith("equal")


DYING = """
import os, signal, sys
import lightning as L
from moe_adapt.cli import main


class Dies(L.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5 and trainer.global_rank == int(os.environ["DIES"]):
            os.kill(os.getpid(), signal.SIGKILL)


sys.exit(main())
"""


def rows(folder):
    tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "program.py").write_text(PROGRAM)
    for split, count in (("train", 32), ("validation", 16)):
        lines = [{"text": f"{'red' if i % 2 else 'blue'} thing {i}", "label": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def launch(folder, name, *flags, program="program.py"):
    words = [sys.executable, str(folder / program), "fit", "--model=SequenceClassifier"]
    words += [f"--model.backbone={folder / 'bert'}", "--model.pooling=mean", "--model.lr=0.01"]
    words += ["--model.tuner.method=soft", "--model.tuner.num_experts=3", "--model.tuner.r=2"]
    words += ["--model.tuner.dropout=0", "--model.tuner.target_modules=ffn", "--data=TextClassificationData"]
    words += [f"--data.train={folder / 'train.jsonl'}", f"--data.validation={folder / 'validation.jsonl'}"]
    words += ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", f"--out={folder / name}", *flags]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder)


def fit(folder, name, *flags):
    result = launch(folder, name, *flags)
    assert result.returncode == 0, result.stderr
    with (folder / name / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    metrics = {key: float(row[key]) for row in logged for key in ("val/acc", "val/loss") if row.get(key)}
    state = read_checkpoint(folder / name / "checkpoints" / "last.ckpt")["state_dict"]
    return metrics, state, json.loads((folder / name / "manifest.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
def test_two_processes_train_as_one(tmp_path, strategy):
    rows(tmp_path)
    one, single, _ = fit(tmp_path, "one", "--data.batch_size=8")
    devices = ("--trainer.devices=2", f"--trainer.strategy={strategy}")
    two, double, manifest = fit(tmp_path, "two", "--data.batch_size=4", *devices)
    assert manifest["device"] == "2 x cpu"
    assert two == pytest.approx(one, abs=1e-4)
    assert single.keys() == double.keys()
    for name in single:
        torch.testing.assert_close(double[name], single[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_process_dies_ends_and_goes_on(tmp_path, monkeypatch, rank):
    rows(tmp_path)
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("DIES", str(rank))
    two = ("--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp")
    died = launch(tmp_path, "parts", *two, "--trainer.callbacks=__main__.Dies", program="dying.py")
    assert died.returncode != 0
    found, parts, _ = fit(tmp_path, "parts", *two, "--resume")
    expected, whole, _ = fit(tmp_path, "whole", *two)
    assert found == expected
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
