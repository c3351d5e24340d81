"""A stream run by several processes: Lightning's DDP for the steps, one process for the files.

The rows of every training batch are shared out, as in ``moe-adapt fit``: gradients are averaged, and
`batch_size` counts the rows of one process. Passes without gradients and tests are made by every process on
all rows, so Gaussians, sums of closed-form heads and accuracies are those of one process. What a learner
gathers during training steps (second moments of inputs, usage of experts) is summed over the processes before
it is read. Only learners that say so (`Learner.distributable`) are run this way.

DDP would overwrite buffers of the other processes with those of the first before every forward: right for
routers whose statistics move with the data, which then follow the rows of the first process, and wrong for
sums. The latter (`Learner.summed_buffers`) are left out.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from moe_adapt.errors import UserError
from moe_adapt.learners import LEARNERS, Learner
from moe_adapt.processes import processes
from moe_adapt.training.randomness import seed_generators

__all__ = ["launch", "make_trainer", "prepare", "share"]

#: What ``trainer.strategy`` may be; ``auto`` is one device, or DDP on several.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def launch(options: dict[str, Any], learner: Learner) -> torch.device:
    """Start the other processes, if there are to be any, and connect them; return this process's device.

    Args:
        options: Options of the Lightning trainers.
        learner: The learner.

    Raises:
        UserError: If the options name another strategy than DDP, or the learner cannot be shared out.
    """
    wanted = options.get("strategy", "auto")
    if wanted not in STRATEGIES:
        raise UserError(
            f"a stream runs on one device or with the strategy ddp, not with {wanted!r}: learners grow "
            "between tasks, which sharded parameters do not follow."
        )
    strategy = make_trainer(options).strategy
    if not isinstance(strategy, DDPStrategy):
        return strategy.root_device
    if not learner.distributable:
        able = ", ".join(name for name in LEARNERS if LEARNERS.get(name).distributable)
        raise UserError(
            f"{type(learner).__name__} keeps samples or statistics that processes do not share, so it runs "
            f"in one process; set devices to 1. Several processes can run: {able}."
        )
    assert strategy.launcher is not None
    strategy.launcher.launch(lambda: None)
    strategy.setup_environment()
    return strategy.root_device


def make_trainer(options: dict[str, Any], **more: Any) -> L.Trainer:
    """Return a new trainer; under ``ddp`` it finds out by itself which experts a step has left out.

    Args:
        options: Options that the caller of the runner may give.
        more: Options of this fit.
    """
    if options.get("strategy") == "ddp":
        options = {**options, "strategy": "ddp_find_unused_parameters_true"}
    return L.Trainer(**options, **more)


def prepare(learner: Learner) -> None:
    """Tell DDP which buffers of a learner are not its to overwrite."""
    if processes() > 1:
        names = sorted(learner.summed_buffers())
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, names)


@torch.no_grad()
def share(learner: Learner, seed: int) -> None:
    """After a fit: give all processes the first one's state, and one random state; nothing with one process.

    Args:
        learner: The learner.
        seed: Of what is drawn next, the same in all processes.
    """
    if processes() == 1:
        return
    own = learner.summed_buffers()
    for name, value in learner.learner_state().items():
        if isinstance(value, Tensor) and name not in own:
            distributed.broadcast(value, src=0)
    seed_generators(seed, seed, seed)
