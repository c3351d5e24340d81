"""Two processes on the CPU (gloo) that share a model with FSDP2 train to the tensors of one process."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_adapt.errors import UserError
from moe_adapt.tuner.sharded import shard_blocks
from tests.tuner.tiny import adapted

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_train_save_and_resume_as_one(tmp_path):
    program = str(HERE / "sharded_program.py")
    processes = [
        subprocess.Popen(
            [sys.executable, program, str(HERE), str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [(*process.communicate(), process.returncode) for process in processes]
    for out, err, code in results:
        assert code == 0, err
        assert out.splitlines() == ["top_k: equal", "dynmole: equal", "condenser_bias: equal"]


def test_losses_on_parameters_are_refused():
    model = adapted("top_k", aux_losses=[{"name": "preserve", "weight": 0.1}])
    with pytest.raises(UserError, match="on the experts' parameters, which are in shards"):
        shard_blocks(model)
