"""Run the trials of a sweep on Ray: on this machine, or on a cluster that shares its file system.

Every trial is a process of its own, started by a Ray worker, so that one that crashes takes nothing with it;
what it printed is in its folder's ``log.txt``. A trial ends with its worker, when the pipe that is its
standard input closes: a killed sweep, whose workers Ray ends, leaves nothing behind that still writes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_adapt.training.ray_cluster import start_ray
from moe_adapt.training.sweep.plan import Trial

__all__ = ["Outcome", "run_trials"]

PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
from moe_adapt.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        trial: The trial.
        status: ``finished``, ``failed``, or ``done before``.
        seconds: How long it took.
        error: The last line of its log if it failed.
    """

    trial: Trial
    status: str
    seconds: float = 0.0
    error: str = ""


def run_trial(words: Sequence[str], folder: str, directory: str, threads: int) -> tuple[int, float, str]:
    """Run one command in a process and return its exit code, its seconds and its log's last line.

    Args:
        words: The command.
        folder: The run's folder, which gets ``log.txt``.
        directory: Where to run it.
        threads: Threads of the process.
    """
    start = time.monotonic()
    Path(folder).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with open(Path(folder) / "log.txt", "w", encoding="utf-8") as log:
        command = [sys.executable, "-c", PROGRAM, *words]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
        ) as process:
            code = process.wait()
    lines = (Path(folder) / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return code, time.monotonic() - start, last


def run_trials(
    trials: Sequence[Trial],
    address: str | None = None,
    parallel: int | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run what has not finished yet; a trial that fails leaves the others alone.

    Args:
        trials: The trials.
        address: Address of a Ray cluster; None starts Ray on this machine.
        parallel: How many at a time on this machine; None for one per CPU.
        threads: CPUs of each trial.
        gpus: GPUs of each trial; a fraction shares one.
        report: Called with every outcome as it comes.

    Raises:
        UserError: If Ray is not installed or the cluster cannot be reached.
    """
    outcomes = [Outcome(trial, "done before") for trial in trials if trial.metrics() is not None]
    for outcome in outcomes:
        report(outcome)
    waiting = [trial for trial in trials if trial.metrics() is None]
    if not waiting:
        return outcomes
    ray = start_ray("a sweep", address, None if parallel is None else parallel * threads)
    try:
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run_trial)
        pending = {
            remote.remote(trial.words(), str(trial.folder), os.getcwd(), threads): trial for trial in waiting
        }
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            outcome = _outcome(ray, ready, pending.pop(ready))
            outcomes.append(outcome)
            report(outcome)
    finally:
        ray.shutdown()
    return outcomes


def _outcome(ray: Any, reference: Any, trial: Trial) -> Outcome:
    try:
        code, seconds, last = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(trial, "failed", error=f"the worker died: {str(error).splitlines()[0]}")
    if code == 0 and trial.metrics() is not None:
        return Outcome(trial, "finished", seconds)
    return Outcome(trial, "failed", seconds, last or f"exit code {code}")
