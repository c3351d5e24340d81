"""One evaluation pass over everything seen.

All test samples seen so far go through one loader, ordered by task, with the task of every sample beside it:
never one loader per task. Counts per task come from one ``bincount``. The prediction of every sample is
kept, so that other metrics need no second pass.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from moe_adapt.learners import Learner
from moe_adapt.streams import Batch, Examples, TaskStream

__all__ = ["Evaluation", "counted_forwards", "evaluate", "loader", "move"]


@dataclass(frozen=True)
class Evaluation:
    """What one pass found.

    Attributes:
        correct: Right answers of each task seen, int64 [t + 1].
        correct_within: The same with the classes of the sample's own task as the only candidates, int64 [t +
            1].
        prediction: Predicted class of every test sample seen, ordered by task, int32 [N].
        right: Whether it was right, bool [N].
        seconds: Time spent in the learner itself.
        forwards: Samples that went through the backbone.
    """

    correct: np.ndarray
    correct_within: np.ndarray
    prediction: np.ndarray
    right: np.ndarray
    seconds: float
    forwards: int


def loader(
    data: Examples, batch_size: int, collate: Callable[[Any], Batch], num_workers: int
) -> Iterable[Batch]:
    """Return the samples in their order, as batches; making an iterator moves no global random state.

    Arrays in memory are cut where they lie: a data loader takes longer than the cut.
    """
    if hasattr(data.inputs, "take"):
        starts = range(0, len(data), batch_size)
        return (collate(data.__getitems__(slice(start, start + batch_size))) for start in starts)
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        data,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        generator=generator,
    )


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on `device`."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


@contextmanager
def counted_forwards(learner: Learner) -> Iterator[list[int]]:
    """Yield a list that gets the batch size of every forward of the learner's backbone."""
    sizes: list[int] = []

    def count(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        sizes.append(len(tensors[0]) if tensors else 0)

    model = getattr(learner.backbone, "model", None)
    handle = None if model is None else model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield sizes
    finally:
        if handle is not None:
            handle.remove()


@torch.inference_mode()
def evaluate(
    learner: Learner, stream: TaskStream, index: int, batch_size: int, num_workers: int = 0
) -> Evaluation:
    """Test `learner` on all tasks up to `index`.

    Args:
        learner: The learner, after it learned task `index`.
        stream: The stream.
        index: The last task seen.
        batch_size: Samples per forward.
        num_workers: Worker processes of the loader.
    """
    learner.eval()
    device = learner.device
    examples, tasks = stream.test_until(index)
    within = stream.test_classes(index).to(device)
    of_sample = torch.from_numpy(tasks).to(device)
    start, seconds, found = 0, 0.0, []
    with counted_forwards(learner) as forwards:
        for batch in loader(examples, batch_size, stream.collate, num_workers):
            batch = move(batch, device)
            stop = start + len(batch["row"])
            task_ids = of_sample[start:stop]
            if learner.needs_task_id:
                batch["task_ids"] = task_ids
            begun = time.perf_counter()
            found.append(learner.evaluate(batch, within[task_ids]))
            seconds += time.perf_counter() - begun
            learner.after_test(task_ids)
            start = stop
    right, prediction, inside = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    if stream.scenario == "task":
        right = inside
    correct, correct_within = (np.bincount(tasks[flags], minlength=index + 1) for flags in (right, inside))
    return Evaluation(correct, correct_within, prediction.astype(np.int32), right, seconds, sum(forwards))
