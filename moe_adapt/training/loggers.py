"""Loggers that write into the run's folder: ``metrics.csv``, and TensorBoard's events if installed."""

import csv
import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from moe_adapt.files import write_file
from moe_adapt.reading import foreign

__all__ = ["RunCSVLogger", "metric_curves", "run_loggers"]


def _metrics(path: Path) -> AbstractContextManager[None]:
    return foreign(path, "the metrics of a run", "move it away, and the run begins a new one")


class _Appending(ExperimentWriter):
    """Lightning's writer, going on with the file that is there instead of deleting it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with _metrics(path), path.open(newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def forget_from(self, step: int) -> None:
        """Drop rows of `step` and later, and half ones, written after a killed run's last checkpoint."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with _metrics(path), path.open(newline="", encoding="utf-8") as file:
                whole = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
                rows = [row for row in whole if row["step"].isdigit() and int(row["step"]) < step]
            self._write(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._write(list(csv.DictReader(file)))

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_file(Path(self.metrics_file_path), text.getvalue())


class RunCSVLogger(CSVLogger):
    """Write ``metrics.csv`` straight into a folder; a resumed run goes on with it.

    Args:
        folder: The run's folder.
        flush_every: Rows between two writes to the disk.
    """

    def __init__(self, folder: str | Path, flush_every: int = 20) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=flush_every)
        self._resumed = False

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.save_dir)

    @property
    def experiment(self) -> Any:
        """The writer, made on first use."""
        if self._experiment is None:
            self._experiment = _Appending(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Record one row; the first one drops what a killed run wrote beyond it."""
        if not self._resumed and step is not None:
            self.experiment.forget_from(step)
            self._resumed = True
        super().log_metrics(metrics, step)


def metric_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the metrics that a run logged, (step, value) by name; nothing without a file.

    Args:
        folder: The run's folder.
    """
    path = folder / "metrics.csv"
    curves: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def run_loggers(folder: str | Path) -> list[Logger]:
    """Return a CSV logger, and a TensorBoard logger if that is installed, both writing into `folder`."""
    loggers: list[Logger] = [RunCSVLogger(folder)]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version="", default_hp_metric=False))
    return loggers
