"""How a stream's test answers fare under every verdict, and how much of "forgetting" is their form.

A language model is trained to write answers, and may lose the way they are written without losing what it
was asked. So, if asked for (`StreamRunner(verdicts=True)`), it also writes an answer to every test prompt,
which is judged exactly and up to its form, beside its choice by likelihood (`moe_adapt.evaluation.answers`).
What a task lost under a strict verdict and not under likelihood is the artefact of format. A model that only
chooses has no format, so nothing of the kind is measured there.
"""

from typing import Any

import numpy as np
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.answers import VERDICTS, format_artefact
from moe_adapt.learners import Learner
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream.evaluate import loader, move

__all__ = ["Verdicts", "artefacts", "check_writes", "count_verdicts"]

#: Right answers after every task on every task by verdict, T lists [T]; -1 where nothing was measured.
Verdicts = dict[str, list[list[int]]]


def check_writes(learner: Learner) -> None:
    """Raise `UserError` unless the learner's model writes answers."""
    if not (isinstance(learner, InstructionLearner) and learner.answerer.writes):
        raise UserError(
            f"verdicts judge what a model writes, and that of {type(learner).__name__} does not write: take "
            "a CausalAnswerer, or leave verdicts off."
        )


@torch.inference_mode()
def count_verdicts(
    learner: InstructionLearner, stream: TaskStream, index: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Return right answers of each task up to `index` by verdict, int64 [index + 1].

    Args:
        learner: The learner, after it learned task `index`.
        stream: The stream.
        index: The last task seen.
        batch_size: Samples per forward.
    """
    learner.eval()
    samples, tasks = stream.test_until(index)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in VERDICTS}
    for batch in loader(samples, batch_size, stream.collate, 0):
        for name, right in learner.verdicts(move(batch, learner.device)).items():
            found[name].append(right.cpu())
    return {
        name: np.bincount(tasks[torch.cat(parts).numpy()], minlength=index + 1)
        for name, parts in found.items()
    }


def artefacts(verdicts: Verdicts, total: np.ndarray) -> list[dict[str, Any]]:
    """Return, for every task but the last, its accuracies then and now and the artefacts of format.

    Args:
        verdicts: Right answers by verdict, [T, T].
        total: Test samples of each task, [T].
    """
    rates = {name: AccuracyMatrix(total, counts).rates() for name, counts in verdicts.items()}
    rows: list[dict[str, Any]] = []
    for task in range(len(total) - 1):
        pairs = {name: (float(found[task, task]), float(found[-1, task])) for name, found in rates.items()}
        row: dict[str, Any] = {"task": task}
        for name, (then, now) in pairs.items():
            row |= {f"{name}_then": then, f"{name}_now": now}
        for name in VERDICTS[:-1]:
            row[f"artefact_{name}"] = format_artefact(pairs[name], pairs["likelihood"])
        rows.append(row)
    return rows
