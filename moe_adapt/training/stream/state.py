"""The checkpoint at a task boundary: the learner, the result so far, and what both must agree with.

One file, ``last.ckpt``, written beside its name and renamed: never half a file. It holds tensors and plain
values only, so it is read without unpickling.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.learners import Learner
from moe_adapt.streams import TaskRecord
from moe_adapt.training.checkpoint import AtomicCheckpointIO, differences, read_checkpoint
from moe_adapt.training.stream.result import StreamResult

__all__ = ["FILE", "read_state", "restore_learner", "write_state"]

FILE = "last.ckpt"
FORMAT = "moe_adapt.stream/1"

#: Parts of the result that are JSON types; as one text, because pickling 300 tasks value by value takes
#: longer than the tensors do.
KEPT = ("manifest", "tasks", "classes", "routing", "attribution", "verdicts")


def write_state(folder: Path, learner: Learner, result: StreamResult) -> None:
    """Write the learner and the result so far.

    Raises:
        UserError: If the disk refuses; the earlier checkpoint is intact then.
    """
    checkpoint = {
        "format": FORMAT,
        "history": json.dumps([asdict(record) for record in learner.history]),
        "state_dict": learner.learner_state(),
        "correct": torch.from_numpy(result.matrix.correct),
        "correct_within": torch.from_numpy(result.within.correct),
        "told": json.dumps({name: getattr(result, name) for name in KEPT}),
    }
    try:
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / FILE)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint could not be written to {folder}: {str(error).splitlines()[0]}. The one before "
            "is intact; make room and go on with --resume."
        ) from error


def read_state(folder: Path, learner: Learner, result: StreamResult) -> None:
    """Bring a fresh `learner` and `result` to where the checkpoint in `folder` left off.

    A run that had learned its last task keeps its own manifest: nothing is left to learn here.

    Raises:
        UserError: If there is no checkpoint, or it is of another learner, stream or seed.
    """
    checkpoint = _checkpoint(folder)
    compared = ("seed", "learner", "stream", "eval_at")
    kept = json.loads(checkpoint["told"])
    old_manifest, new = kept["manifest"], json.loads(json.dumps(result.manifest))
    changed = [d for key in compared for d in differences(old_manifest[key], new[key], key)]
    if changed:
        raise UserError(
            f"the run in {folder} has another configuration: {'; '.join(changed[:5])}"
            f"{' and more' if len(changed) > 5 else ''}. Resume with the configuration of the run, or start "
            "a new one."
        )
    _restore(learner, checkpoint)
    result.matrix = AccuracyMatrix(result.matrix.total, checkpoint["correct"].numpy())
    result.within = AccuracyMatrix(result.within.total, checkpoint["correct_within"].numpy())
    result.tasks, result.classes, result.routing = kept["tasks"], kept["classes"], kept["routing"]
    result.attribution, result.verdicts = kept["attribution"], kept["verdicts"]
    if result.done:
        result.manifest = old_manifest
    else:
        result.manifest["resumed_after_task"] = len(result.tasks) - 1


def restore_learner(folder: Path, learner: Learner) -> None:
    """Bring a fresh `learner` to where the checkpoint in `folder` left off, whatever the stream was.

    Raises:
        UserError: If there is no checkpoint, or it is of another learner.
    """
    checkpoint = _checkpoint(folder)
    old = json.loads(checkpoint["told"])["manifest"]["learner"]
    changed = differences(old, json.loads(json.dumps(learner.settings())), "learner")
    if changed:
        raise UserError(f"the run in {folder} has another learner: {'; '.join(changed[:5])}.")
    _restore(learner, checkpoint)


def _checkpoint(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"nothing to go on from: there is no checkpoint {path}; finish a task first.")
    checkpoint: dict[str, Any] = read_checkpoint(path)
    if checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of a stream run (format {checkpoint.get('format')!r}).")
    return checkpoint


def _restore(learner: Learner, checkpoint: dict[str, Any]) -> None:
    records = (TaskRecord(**{**r, "classes": tuple(r["classes"])}) for r in json.loads(checkpoint["history"]))
    learner.restore(records, checkpoint["state_dict"])
