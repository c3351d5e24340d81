"""Write ``manifest.json``: how a run was made, how long it took, what it reached."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L

from moe_adapt import manifest
from moe_adapt.errors import UserError
from moe_adapt.files import write_file
from moe_adapt.training.loggers import metric_curves

__all__ = ["ManifestCallback"]


class ManifestCallback(L.Callback):
    """Write the manifest when training starts, and again when it ends, however it ends.

    Keys: those of `moe_adapt.manifest.collect`, ``seed``, ``device``, ``precision``, ``status``
        (running,
    finished, interrupted or failed), ``resumed_from``, ``started``, ``ended``, ``wall_seconds``,
    ``peak_memory_mb``, ``trainable_parameters``, ``total_parameters``, ``steps``, ``epochs`` and ``metrics``;
    and what other callbacks' method ``facts`` returns, such as ``head_start`` with the baselines.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self._start = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is known before the first step."""
        self._start = time.monotonic()
        parameters = list(pl_module.parameters())
        self.record = {
            **manifest.collect(),
            "seed": getattr(pl_module, "seed", None),
            "device": f"{trainer.num_devices} x {trainer.strategy.root_device.type}",
            "precision": str(trainer.precision),
            "status": "running",
            "resumed_from": None if trainer.ckpt_path is None else Path(trainer.ckpt_path).name,
            "started": manifest.now(),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "total_parameters": sum(p.numel() for p in parameters),
        }
        self._write(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add time, memory and metrics."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            if not (folder / "manifest.json").is_file():
                raise UserError(
                    f"{folder} was deleted while the run wrote into it, so parts of the run are lost; "
                    "run it again."
                )
        self._close(trainer, "finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say that the run did not finish."""
        if self.record.get("status") == "running":
            self._close(trainer, "interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    def _close(self, trainer: L.Trainer, status: str) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not metrics and status == "finished":
            metrics = logged(Path(trainer.default_root_dir))
        self.record |= {
            "status": status,
            "ended": manifest.now(),
            "wall_seconds": round(time.monotonic() - self._start, 2),
            "peak_memory_mb": round(manifest.peak_memory_mb(), 1),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "metrics": metrics,
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            self.record |= callback.facts() if hasattr(callback, "facts") else {}
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            write_file(folder / "manifest.json", json.dumps(self.record, indent=2) + "\n")


def logged(folder: Path) -> dict[str, float]:
    """Return the last value of every logged metric of training and validation.

    A run that was killed after its last checkpoint has nothing left to train when it goes on, and so no
    metrics of its own.
    """
    curves = metric_curves(folder)
    return {name: curve[-1][1] for name, curve in curves.items() if name.startswith(("train/", "val/"))}
