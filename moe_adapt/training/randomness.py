"""Randomness that a resumed run repeats.

Two devices together make a killed and resumed run equal to an uninterrupted one:

* every training batch starts from its own seed, a function of (run seed, process, epoch, batch), so that
  dropout masks do not depend on how many draws a data loader, a validation pass or a logger made before;
* the states of the generators travel in the checkpoint and are put back before the first batch is fetched, so
  that worker processes of data loaders get the seeds they would have got.
"""

import os
import random
from typing import Any

import numpy as np
import torch

__all__ = ["rng_state", "run_seed", "seed_batch", "seed_generators", "set_rng_state"]


def run_seed() -> int:
    """Return the seed of this run: that of `lightning.seed_everything`, else torch's initial seed."""
    return int(os.environ.get("PL_GLOBAL_SEED") or torch.initial_seed())


def seed_batch(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed python, numpy and torch for one training batch.

    Args:
        seed: Seed of the run.
        rank: Index of the process, so that processes draw different dropout masks.
        epoch: Index of the epoch.
        batch: Index of the batch within the epoch.
    """
    words = np.random.SeedSequence([seed, rank, epoch, batch]).generate_state(3)
    seed_generators(int(words[0]), int(words[1]), int(words[2]))


def seed_generators(python: int, numpy: int, torch_: int) -> None:
    """Seed the three global generators.

    `torch.manual_seed` notes a call stack for accelerators that may be initialised later, which takes
    milliseconds; where there is no accelerator, its generator on the CPU is all there is to seed.
    """
    random.seed(python)
    np.random.seed(numpy)
    if torch.accelerator.is_available():
        torch.manual_seed(torch_)
    else:
        torch.default_generator.manual_seed(torch_)


def rng_state() -> dict[str, Any]:
    """Return the states of all generators, in types that `weights_only` loading accepts."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    words = torch.from_numpy(keys.astype(np.int64))  # type: ignore[union-attr]
    state: dict[str, Any] = {
        "python": list(random.getstate()),
        "numpy": [kind, words, int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned; GPU states only where as many GPUs are present."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state.get("cuda", [])) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
