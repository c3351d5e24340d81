"""What every run gets without asking: callbacks, loggers, checkpoints, and the options that tune them."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

__all__ = ["add_arguments", "callbacks", "loggers"]


def add_arguments(parser: Any) -> None:
    """Add the options of the default callbacks."""


def callbacks(options: Namespace, command: str) -> list[Callback]:
    """Return the callbacks of a command."""
    return [
        ModelCheckpoint(dirpath=Path(options.trainer["default_root_dir"]) / "checkpoints", save_last=True)
    ]


def loggers(folder: Path, command: str) -> list[Logger]:
    """Return the loggers of a command."""
    return [CSVLogger(folder, name="", version="")]
