"""Who answers the shards of a file: this process, or several on Ray Data.

Each worker opens the model once and takes shard after shard. Ray sends only the shards' descriptions and
takes back their numbers, so that neither rows nor answers go through its memory.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.serving.classify import Classifying
from moe_adapt.serving.opening import open_model
from moe_adapt.serving.shards import Job, Shard, answer_shard
from moe_adapt.training.ray_cluster import start_ray

__all__ = ["run_here", "run_on_ray"]

Say = Callable[[int], object]


def open_classifier(job: Job) -> Classifying:
    """Open the model of a job.

    Raises:
        UserError: If it cannot be opened, or is no classifier.
    """
    model = open_model(job.source, job.base, job.checkpoint)
    if not isinstance(model, Classifying):
        raise UserError(f"{job.source} is a language model: use `moe-adapt generate` or `chat`.")
    return model


def run_here(job: Job, shards: Sequence[Shard], say: Say = lambda done: None) -> None:
    """Answer shards in this process.

    Args:
        job: What is answered.
        shards: Those that are missing.
        say: Called with how many are done.

    Raises:
        UserError: If the model cannot be opened or a row not be answered.
    """
    if not shards:
        return
    model = open_classifier(job)
    for done, shard in enumerate(shards, start=1):
        answer_shard(model, job, shard)
        say(done)


class _Worker:
    """A model in a process of Ray; a mistake in a row is told, not raised, so that Ray does not try again."""

    def __init__(self, job: Job, directory: str) -> None:
        os.chdir(directory)
        self.job, self.model, self.mistake = job, None, ""
        try:
            self.model = open_classifier(job)
        except UserError as mistake:
            self.mistake = str(mistake)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**{name: int(values[0]) for name, values in batch.items()})
        mistake = self.mistake
        if not mistake:
            try:
                answer_shard(self.model, self.job, shard)
            except UserError as error:
                mistake = str(error)
        return {"number": [shard.number], "mistake": [mistake]}


def run_on_ray(
    job: Job,
    shards: Sequence[Shard],
    workers: int,
    address: str | None = None,
    gpus: float = 0.0,
    say: Say = lambda done: None,
) -> None:
    """Answer shards in several processes, on this machine or on a cluster that shares its file system.

    Args:
        job: What is answered.
        shards: Those that are missing.
        workers: How many processes.
        address: Address of a Ray cluster; None starts Ray here.
        gpus: GPUs of each worker; a fraction shares one.
        say: Called with how many are done.

    Raises:
        UserError: If Ray is missing or cannot be reached, or a row cannot be answered.
    """
    if not shards:
        return
    ray = start_ray("moe-adapt predict --workers", address, workers + 1)  # one reads for Ray Data
    data = import_module("ray.data")
    try:
        data.DataContext.get_current().enable_progress_bars = False
        rows = data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))
        answered = rows.map_batches(
            _Worker,
            fn_constructor_args=(job, os.getcwd()),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        for done, row in enumerate(answered.iter_rows(), start=1):
            if row["mistake"]:
                raise UserError(row["mistake"])
            say(done)
    except ray.exceptions.RayError as error:
        raise UserError(f"a worker died: {str(error).splitlines()[0]} The same command goes on.") from error
    finally:
        ray.shutdown()
