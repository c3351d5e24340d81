"""accelerate with two processes: auxiliary losses and router state are those of one process with all rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import peft, torch
from accelerate import Accelerator
from moe_adapt.tuner import ModelHooks
from tests.tuner.clients import base, config, routers
from tests.tuner.tiny import batch

accelerator = Accelerator(cpu=True)
losses = [{"name": "z_loss", "weight": 2.0}]
model = peft.get_peft_model(base(), config(modifiers=["condense_bias"], aux_losses=losses))
(hooks,) = ModelHooks.find(model)
hooks.add_aux_to_loss = True
rows = batch(rows=4, left_padding=0)
share = 4 // accelerator.num_processes
start = accelerator.process_index * share
rows = {k: v[start : start + share] for k, v in rows.items()}
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
wrapped, optimizer = accelerator.prepare(model, optimizer)
wrapped.train()
accelerator.backward(wrapped(**rows).logits.square().mean())
optimizer.step()
hooks.after_step()
found = routers(model) | {n: b for n, b in model.named_buffers() if n.endswith("bias.default")}
if accelerator.is_main_process:
    json.dump({n: v.flatten().tolist() for n, v in found.items()}, open(sys.argv[1], "w"))
accelerator.end_training()
"""


def run(tmp_path, processes):
    script, out = tmp_path / "step.py", tmp_path / f"{processes}.json"
    script.write_text(SCRIPT, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, str(script), str(out)],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_two_processes_equal_one(tmp_path):
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    assert one.keys() == two.keys() and any("bias" in name for name in one)
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
