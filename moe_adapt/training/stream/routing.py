"""Which experts a learner's routers use, after the last task."""

import numpy as np
import torch

from moe_adapt.learners import Learner
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream.evaluate import loader, move

__all__ = ["routing_load"]

#: Test samples of each task that are looked at.
SAMPLES = 32


@torch.no_grad()
def routing_load(learner: Learner, stream: TaskStream, batch_size: int) -> dict[str, list[float]]:
    """Return the share of picks of each expert by site, over test samples of every task.

    Empty without routers.

    Args:
        learner: The learner, after the last task.
        stream: The stream; the first samples of each task's test set are taken.
        batch_size: Samples per forward.
    """
    tuner = getattr(learner.backbone, "tuner", None)
    if tuner is None:
        return {}
    summary = tuner.summary()
    if summary.experts == summary.sites:  # one expert each: nothing is chosen
        return {}
    learner.eval()
    examples, tasks = stream.test_until(len(stream) - 1)
    firsts = torch.from_numpy(tasks).unique(return_counts=True)[1].cumsum(0).tolist()
    starts = [0, *firsts[:-1]]
    ranges = [range(a, min(b, a + SAMPLES)) for a, b in zip(starts, firsts, strict=True)]
    chosen = np.array([row for each in ranges for row in each])
    within = stream.test_classes(len(stream) - 1).to(learner.device)
    of_sample = torch.from_numpy(tasks[chosen]).to(learner.device)
    start = 0
    load: dict[str, torch.Tensor] = {}
    with tuner.record():
        for batch in loader(examples.subset(chosen), batch_size, stream.collate, 0):
            task_ids = of_sample[start : start + len(batch["row"])]
            start += len(task_ids)
            if learner.needs_task_id:
                batch["task_ids"] = task_ids
            learner.evaluate(move(batch, learner.device), within[task_ids])
            for site, stats in tuner.routing_stats().items():
                load[site] = load.get(site, torch.zeros_like(stats.load)) + stats.load * stats.tokens
    return {site: (total / total.sum().clamp(min=1e-12)).tolist() for site, total in load.items()}
