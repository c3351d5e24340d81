"""What every run gets without asking: callbacks, loggers, atomic checkpoints; and the options for them."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from moe_adapt.cli.predictions import PredictionWriter
from moe_adapt.errors import UserError
from moe_adapt.training.callbacks import (
    AdapterReport,
    BestCheckpoint,
    FirstExample,
    GenerationPreview,
    HeadStart,
    LastCheckpoint,
    ManifestCallback,
    OutputFolderGuard,
    RoutingMonitor,
    progress_bar,
)
from moe_adapt.training.checkpoint import AtomicCheckpointIO
from moe_adapt.training.loggers import RunCSVLogger, run_loggers

__all__ = [
    "TRAINER",
    "add_arguments",
    "callbacks",
    "check_strategy",
    "limit_epochs",
    "loggers",
    "plugins",
]

#: Trainer options whose default differs from Lightning's: `AdapterReport` prints a better summary.
TRAINER = {"enable_model_summary": False}

#: Length of a run that is given none.
EPOCHS = 3


def add_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of the default callbacks: ``best_checkpoint``, ``head_start`` and others."""
    parser.add_class_arguments(BestCheckpoint, "best_checkpoint", skip={"dirpath"})
    parser.add_class_arguments(LastCheckpoint, "last_checkpoint", skip={"dirpath"})
    parser.add_class_arguments(RoutingMonitor, "routing")
    parser.add_class_arguments(HeadStart, "head_start")
    parser.add_class_arguments(FirstExample, "first_example")
    parser.add_class_arguments(GenerationPreview, "preview")


def limit_epochs(trainer: Namespace) -> None:
    """Give a run that has no length `EPOCHS` epochs; Lightning would give it 1,000.

    Args:
        trainer: The trainer's options; changed in place.
    """
    if trainer.max_epochs is None and trainer.max_steps == -1 and trainer.max_time is None:
        trainer.max_epochs = EPOCHS


def callbacks(options: Namespace, command: str) -> list[Callback]:
    """Return the callbacks of a command, in the order in which they run.

    Args:
        options: The command's options, with their objects made.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    trainer = options.trainer
    found: list[Callback] = []
    if command == "fit":
        found = [OutputFolderGuard(options.overwrite), AdapterReport(), ManifestCallback()]
        found += [options.first_example, options.preview]
    found += [options.routing, options.head_start]  # like the next two they own entries in the checkpoints
    if trainer.enable_checkpointing is not False:
        found += [options.last_checkpoint, options.best_checkpoint]
    if command == "predict":
        found.append(PredictionWriter(Path(trainer.default_root_dir) / "predictions.jsonl"))
    given = trainer.callbacks or []
    own_bar = any(
        isinstance(callback, ProgressBar) for callback in (given if isinstance(given, list) else [given])
    )
    if trainer.enable_progress_bar is not False and not own_bar:
        found.append(progress_bar())
    return found


def loggers(folder: Path, command: str) -> list[Logger]:
    """Return the loggers of a command: those of the run for training, else a table in a sub-folder.

    Args:
        folder: The run's folder.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    return run_loggers(folder) if command == "fit" else [RunCSVLogger(folder / command)]


def plugins(given: Any) -> list[Any]:
    """Return the trainer's plugins: those given, and our checkpoint writer if there is no other.

    Args:
        given: ``trainer.plugins``: None, one or a list.
    """
    own = given if isinstance(given, list) else [] if given is None else [given]
    writer = any(isinstance(plugin, CheckpointIO) for plugin in own)
    return own if writer else [*own, AtomicCheckpointIO()]


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that shard weights.

    Args:
        strategy: ``trainer.strategy``: a name, or a class and its arguments.

    Raises:
        UserError: For FSDP, DeepSpeed and model parallelism.
    """
    name = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", type(strategy).__name__)
    if any(word in str(name).lower() for word in ("fsdp", "deepspeed", "modelparallel")):
        raise UserError(
            f"the strategy {name} shards weights, which adapter checkpoints do not hold; use one device or "
            "ddp, with a half-precision base (--model.dtype bfloat16) if memory is short. Larger models "
            "train in a loop of your own with moe_adapt.tuner.sharded."
        )
