"""Keep two runs from sharing a folder."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L

from moe_adapt.errors import UserError

__all__ = ["OutputFolderGuard", "claim_folder"]

#: What a run writes; a folder that holds one of these is in use.
RUN_FILES = (
    "moe_adapt_config.yaml*",
    "manifest.json",
    "metrics.csv",
    "hparams.yaml",
    "routing.json",
    "routing.png",
    "checkpoints",
    "report.html",
    "baselines",
    "events.out.tfevents.*",
)


def claim_folder(folder: Path, resume_from: Path | None = None, overwrite: bool = False) -> None:
    """Make sure that a new run may write into `folder`.

    Args:
        folder: The run's folder; it need not exist.
        resume_from: Checkpoint that the run goes on from, if any.
        overwrite: Whether to delete the run that is there; files that no run writes stay.

    Raises:
        UserError: If the folder holds a run that this one neither continues nor may overwrite; nothing was
            changed.
    """
    mine = f".{os.getpid()}."  # a logger may have opened its file already
    used = [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern)) if mine not in path.name]
    if not used or (resume_from is not None and folder.resolve() in resume_from.resolve().parents):
        return
    if not overwrite:
        raise UserError(
            f"{folder} already holds a run ({', '.join(path.name for path in used)}); choose another folder "
            "with --out, continue that run with --resume, or replace it with --overwrite."
        )
    for path in used:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class OutputFolderGuard(L.Callback):
    """Refuse to train into the folder of another run; see `claim_folder`.

    Args:
        overwrite: Whether to delete the run that is there.
    """

    def __init__(self, overwrite: bool = False) -> None:
        self.overwrite = overwrite

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Claim the trainer's ``default_root_dir``."""
        dry: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        if stage == "fit" and trainer.is_global_zero and not dry:
            start = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
            claim_folder(Path(trainer.default_root_dir), start, self.overwrite)
        trainer.strategy.barrier()
