"""What the two comparisons share: training with a clock, processes of their own, one file per cell."""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from moe_adapt.manifest import collect
from moe_adapt.training.modules.base import AdaptedModule

__all__ = ["PAIRED_STEPS", "run_cells", "train", "write_report"]

Cell = dict[str, Any]
#: First steps whose times are kept, to be compared step by step with those of another method.
PAIRED_STEPS = 16


class Clock(lightning.Callback):
    """Process CPU time of training steps, without the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Note the time."""
        self.start = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        """Keep what has passed."""
        self.seconds.append(time.process_time() - self.start)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(
    module: AdaptedModule,
    data: lightning.LightningDataModule,
    epochs: int,
    steps: int = -1,
    callbacks: Sequence[lightning.Callback] = (),
) -> Cell:
    """Train in bf16 on the CPU and return parameters, steps, idle tensors, time and memory.

    Args:
        module: What to train.
        data: Its data.
        epochs: How often it sees them.
        steps: Where to stop before that; -1 goes on to the end.
        callbacks: What else runs beside the clock.
    """
    before, clock = _peak_mb(), Clock()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        max_steps=steps,
        accelerator="cpu",
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *callbacks],
    )
    start = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    trainer.fit(module, datamodule=data)
    return {
        "trainable_parameters": sum(p.numel() for p in start.values()),
        "idle_tensors": sum(
            name in start and torch.equal(p, start[name]) for name, p in module.named_parameters()
        ),
        "steps": trainer.global_step,
        "cpu_seconds_per_step": statistics.median(clock.seconds[1:]),
        "training_memory_mb": _peak_mb() - before,
        "first_steps": [round(seconds, 4) for seconds in clock.seconds[1:PAIRED_STEPS]],
    }


def run_cells(
    cells: Iterable[tuple[str, int]],
    runs: Path,
    run: Callable[[str, int, argparse.Namespace], Cell],
    args: argparse.Namespace,
    command: str,
    settings: Cell,
) -> None:
    """Run each cell (method, seed) that has no file in `runs`, in a process forked from this one."""

    def write(name: str, seed: int, path: Path) -> None:
        torch.set_num_threads(1)
        lightning.seed_everything(seed, verbose=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = {"method": name, "seed": seed} | run(name, seed, args)
        made = {"settings": settings, "manifest": collect() | {"command": command}}
        path.write_text(json.dumps(found | made, indent=1) + "\n")

    runs.mkdir(parents=True, exist_ok=True)
    for name, seed in cells:
        path = runs / f"{name}-{seed}.json"
        if path.is_file():
            continue
        start = time.time()
        process = multiprocessing.get_context("fork").Process(target=write, args=(name, seed, path))
        process.start()
        process.join()
        print(f"{name} {seed}: exit {process.exitcode}, {time.time() - start:.0f} s", flush=True)


def write_report(
    to: Path,
    cells: Iterable[tuple[str, int]],
    runs: Path,
    labels: dict[str, str],
    command: str,
    settings: Cell,
    **facts: Any,
) -> None:
    """Write the cells that are there beside the rows that the file has, one row per method and seed.

    A row that came from a cell keeps the manifest of its cell; rows without one are of the file's manifest.

    Raises:
        SystemExit: If rows were made with other settings.
    """
    before = json.loads(to.read_text()) if to.is_file() else {"rows": []}
    found = {(row["method"], row["seed"]): row for row in before["rows"]}
    _check_settings(before.get("settings", settings), settings, to)
    for name, seed in cells:
        path = runs / f"{name}-{seed}.json"
        if path.is_file():
            row = json.loads(path.read_text())
            _check_settings(row.pop("settings", None), settings, path)
            found[name, seed] = row
    order = {name: place for place, name in enumerate(labels)}
    rows = [
        row | {"label": labels[row["method"]]}
        for row in sorted(found.values(), key=lambda row: (order[row["method"]], row["seed"]))
    ]
    manifest = before.get("manifest") or collect() | {"command": command}
    report = {"manifest": manifest, "settings": settings, **facts, "rows": rows}
    to.write_text(json.dumps(report, indent=1) + "\n")


def _check_settings(found: Cell | None, wanted: Cell, path: Path) -> None:
    if found != wanted:
        raise SystemExit(f"{path.name} was made with {found}, not {wanted}; rows would not compare.")
