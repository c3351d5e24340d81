"""Where a run lives: its folder, the checkpoint that it goes on from or is evaluated with.

A run folder is ``--out``; without it ``trainer.default_root_dir`` (which a saved configuration holds, so that
``--config RUN/moe_adapt_config.yaml`` finds its run again); without either a new ``runs/<name>-<time>``.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.reading import read_json, read_yaml
from moe_adapt.runs.config_names import CONFIG_FILE
from moe_adapt.training.checkpoint import checkpoint_path

__all__ = [
    "CONFIG_FILE",
    "check_unfinished",
    "evaluation_checkpoint",
    "own_folder",
    "resume_checkpoint",
    "resume_hint",
    "run_folder",
]

#: Set for the processes that a distributed launch starts with the same command, so that all use one folder.
FOLDER_VARIABLE = "MOE_ADAPT_RUN_FOLDER"


def run_folder(out: str | None, default_root_dir: str | None, name: str) -> Path:
    """Return the folder of the run.

    Args:
        out: ``--out``, if given.
        default_root_dir: ``trainer.default_root_dir``, if given.
        name: What a new folder under ``runs/`` is called, before the time.
    """
    if out or default_root_dir:
        return Path(out or default_root_dir or "")
    if "LOCAL_RANK" in os.environ and FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    folder = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder


def resume_checkpoint(resume: Any, folder: Path) -> Path | None:
    """Return the checkpoint that ``--resume`` asks for, or None if it was not given.

    Args:
        resume: False, True (the run folder's last checkpoint), or the path of a checkpoint.
        folder: The run folder.

    Raises:
        UserError: If there is no such checkpoint.
    """
    if resume is False or resume is None:
        return None
    path = folder / "checkpoints" / "last.ckpt" if resume is True else Path(resume)
    if not path.is_file():
        raise UserError(f"nothing to resume: there is no checkpoint {path}; give the run's folder as --out.")
    return path


def check_unfinished(folder: Path, trainer: Mapping[str, Any]) -> None:
    """Check that a run that is to go on has something left to do; a finished one stays as it is.

    Args:
        folder: The run folder.
        trainer: Options of the trainer: with other limits than those it was finished under, it goes on.

    Raises:
        UserError: If it has finished.
    """
    path, config = folder / "manifest.json", folder / CONFIG_FILE
    if not path.is_file() or not config.is_file():
        return
    if read_json(path, "the manifest of a run").get("status") != "finished":
        return
    limits = ("max_epochs", "max_steps", "max_time")
    before = (read_yaml(config, "the configuration of a run") or {}).get("trainer") or {}
    if all(before.get(name) == trainer.get(name) for name in limits):
        raise UserError(
            f"the run in {folder} has finished: nothing is left to train, and it was left as it is; raise "
            "--trainer.max_epochs (or max_steps) to train on."
        )


def own_folder(configs: Sequence[Path], default_root_dir: str | None) -> str | None:
    """Return the folder of a run's saved configuration, wherever it was copied, else `default_root_dir`.

    Args:
        configs: The configurations given.
        default_root_dir: ``trainer.default_root_dir`` after all of them and the command line.
    """
    for path in reversed(configs):
        beside = path.name == CONFIG_FILE and (path.parent / "checkpoints").is_dir()
        if beside and default_root_dir is not None:
            saved = (read_yaml(path, "the configuration of a run") or {}).get("trainer") or {}
            if saved.get("default_root_dir") == default_root_dir:
                return str(path.parent)
    return default_root_dir


def evaluation_checkpoint(ckpt_path: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to evaluate: the one asked for, else the run's best; None if there is no run.

    Args:
        ckpt_path: ``--ckpt_path``: ``best``, ``last`` or a path.
        folder: The run folder.

    Raises:
        UserError: If the one asked for does not exist.
    """
    if ckpt_path is None and not (folder / "checkpoints").is_dir():
        return None
    return checkpoint_path(folder, ckpt_path or "best")


def resume_hint(folder: Path) -> str:
    """Return the command that continues the run in `folder`, or why it cannot be continued."""
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        return f"No checkpoint was written to {folder} yet: start again."
    return f"resume with: moe-adapt fit --config {folder / CONFIG_FILE} --out {folder} --resume"
