"""Run by tests in processes of their own: learners over small streams, alone or two processes together.

python process_programs.py OUT LEARNER ...
"""

import os
import sys
from pathlib import Path

import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.learners import Care, Ewc, FineTuning, LwF, RanPac, Ridge
from moe_adapt.optim.groups import momentum_sgd
from moe_adapt.processes import process, processes
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner import RoutedLoraConfig
from tests.learners.care.encoders import ENCODERS, make_stream
from tests.learners.care.test_learner import SMALL
from tests.learners.instructions import toys

#: Lightning forgets the variable after the first fit.
WANTED = int(os.environ.get("WORLD_SIZE", 1))


def tuner():
    return RoutedLoraConfig(
        method="soft", target_modules=["0", "2"], num_experts=3, r=2, dropout=0.0, aux_losses=[]
    )


def care(batch_size):
    options = {"epochs": 2, "lr": 0.05, "alignment_epochs": 2, "alignment_samples": 16}
    return Care(ENCODERS["bert"](), SMALL, row="mean", batch_size=batch_size, **options)


def same(batch_size):
    options = {"router_update": "strict", "freeze_after": 1, "refresh_every": 1, "precondition": "both"}
    options["observe_share"] = 1.0
    return toys.learner("same", batch_size=batch_size, lr=1e-3, **options)


SETTINGS = {"epochs": 2, "lr": 0.02}
LEARNERS = {
    "adapter": lambda size: FineTuning(ToyEncoder(), tuner=tuner(), batch_size=size, **SETTINGS),
    "ewc": lambda size: Ewc(
        ToyEncoder(), tuner=tuner(), batch_size=size, fisher_samples=99, fisher_labels="data", **SETTINGS
    ),
    # Adam would turn the rounding of a gradient that is zero into a whole step
    "lwf": lambda size: LwF(ToyEncoder(), batch_size=size, optimizer=momentum_sgd, **SETTINGS),
    "ridge": lambda size: Ridge(ToyEncoder(), lam=0.1),
    "ranpac": lambda size: RanPac(ToyEncoder(), tuner(), proj_dim=24, epochs=2, batch_size=size),
    "care": care,
    "same": same,
    "olora": lambda size: toys.learner("olora", batch_size=size, lr=1e-3),
}

INSTRUCTIONS = ("same", "olora")


def stream(name):
    if name == "care":
        return make_stream(text=True, sizes=(2, 2), train=8, test=8)
    if name in INSTRUCTIONS:
        return toys.stream(2)
    return gaussian_stream(tasks=2, train=16, test=8)


def run(name, folder):
    """Run a learner, and return its accuracies and its state."""
    torch.manual_seed(0)
    learner = LEARNERS[name]((4 if name in INSTRUCTIONS else 12) // WANTED)
    trainer = {"devices": WANTED, "strategy": "ddp"} if WANTED > 1 else {}
    result = StreamRunner(folder / name, trainer=trainer, attribution=False).run(learner, stream(name))
    state = {key: value for key, value in learner.learner_state().items() if isinstance(value, torch.Tensor)}
    return {
        "correct": torch.from_numpy(result.matrix.correct),
        "state": state,
        "steps": [t["steps"] for t in result.tasks],
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found = {name: run(name, out / f"runs-{WANTED}") for name in sys.argv[2:]}
    assert processes() == WANTED
    torch.save(found, out / f"found-{WANTED}-{process()}.pt")
