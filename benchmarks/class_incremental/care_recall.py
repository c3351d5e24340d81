"""Does CaRE's bi-level routing find a sample's own task once it is trained? Recall over the epochs of a task.

    python benchmarks/class_incremental/care_recall.py --prepared PREPARED

The first tasks of Tiny-ImageNet with 50 images per class, as in `methods/care_trained.yaml` but with more
epochs. After some epochs the test samples of all tasks so far go through the model. For every block it is
noted how often the perceptron of a sample's own task has the least entropy, and how often its router is among
the chosen ones. The last task is noted apart from the older ones.
"""

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from run import HERE, build, facts

from moe_adapt.learners import Care
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream import StreamRunner

RESULT = HERE.parent / "results" / "care_recall.json"
STREAM = "tiny_imagenet_more_20"


def first_tasks(stream: TaskStream, count: int) -> TaskStream:
    """Return the stream of the first tasks alone."""
    rows = stream.train_rows[:count], stream.test_rows[:count]
    labels = stream.train_labels, stream.test_labels
    return TaskStream(
        "class", stream.train, stream.test, *rows, *labels, stream.class_names, None, stream.collate
    )


class Recall(Callback):
    """Notes after some epochs how often a sample's own task is found.

    Args:
        learner: The learner.
        stream: Its stream.
        per_task: Test samples per task, evenly spread over its classes.
        at: Epochs of a task after which to look, counted over both halves.
    """

    def __init__(self, learner: Care, stream: TaskStream, per_task: int, at: tuple[int, ...]) -> None:
        self.learner, self.stream, self.per_task, self.at = learner, stream, per_task, at
        self.task, self.epoch = -1, 0
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, if this is an epoch to look after."""
        task = len(self.learner.history) - 1
        self.epoch = self.epoch + 1 if task == self.task else 1
        self.task = task
        if task and self.epoch in self.at:
            self.learner.eval()
            self.rows.append({"task": task, "epoch": self.epoch, "blocks": self.look(task)})
            self.learner.train()

    @torch.inference_mode()
    def look(self, last: int) -> list[dict[str, float]]:
        """Return shares of test samples per block: own perceptron surest, own router chosen; new and old."""
        examples, tasks = self.stream.test_until(last)
        own = [np.flatnonzero(tasks == task) for task in range(last + 1)]
        step = max(1, len(own[0]) // self.per_task)
        picked = np.concatenate([rows[::step][: self.per_task] for rows in own]).tolist()
        of = torch.from_numpy(tasks)[picked]
        new, found = of == last, []
        for decision in self.learner.decisions(self.stream.collate(examples.__getitems__(picked))):
            surest = decision.entropies.argmin(dim=1) == of
            chosen = (decision.chosen == of[:, None]).any(dim=1)
            found.append(
                {
                    f"{name}_{which}": float(right[rows].double().mean())
                    for name, right in (("surest", surest), ("chosen", chosen))
                    for which, rows in (("new", new), ("old", ~new))
                }
            )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the folder that prepare.py wrote")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 2, 5, 10])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.chdir(options.prepared)
    whole, learner = build(STREAM, "care_trained", 1993, seed=0)
    assert isinstance(learner, Care)
    learner.epochs = options.epochs
    stream = first_tasks(whole, options.tasks)
    recall = Recall(learner, stream, per_task=60, at=tuple(options.at))
    result = StreamRunner(seed=0, eval_at=f"every={options.tasks}", callbacks=[recall]).run(learner, stream)
    report = {
        "stream": STREAM,
        "tasks": options.tasks,
        "epochs": options.epochs,
        "per_task": recall.per_task,
        "final_accuracy": float(result.matrix.rates()[-1].mean()),
        "rows": recall.rows,
        "manifest": facts("care_recall.py --prepared PREPARED"),
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{RESULT.name}: accuracy {report['final_accuracy']:.3f}")


if __name__ == "__main__":
    main()
