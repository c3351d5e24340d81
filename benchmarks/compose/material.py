"""What all measures of a form and seed share: rows, adapters, routers, and which rows who answers right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from encoder import Cached, Halves
from prepare import all_of
from torch import Tensor

from moe_adapt.routing.sample import SAMPLE_ROUTERS, SampleRouter

__all__ = ["Cell", "Material", "final_embeddings", "router", "task_means"]

Cell = dict[str, Any]


def task_means(right: Tensor, tasks: list[str]) -> dict[str, float]:
    """Return the accuracy of every task and their mean."""
    names = list(dict.fromkeys(tasks))
    own = {
        name: float(right[[i for i, task in enumerate(tasks) if task == name]].float().mean())
        for name in names
    }
    return own | {"mean": sum(own.values()) / len(own)}


@torch.no_grad()
def final_embeddings(halves: Halves, data: Cached) -> Tensor:
    """Return the base's own embeddings of rows, [N, d]."""
    parts = [range(i, min(i + 64, len(data))) for i in range(0, len(data), 64)]
    return torch.cat([data.take(part).vectors(halves.base) for part in parts])


def router(
    name: str,
    features: dict[str, Tensor],
    seen: int,
    labels: dict[str, list[str]] | None = None,
    **options: Any,
) -> SampleRouter:
    """Return a router that saw the first `seen` examples of each task, and their labels if there are some."""
    found = SAMPLE_ROUTERS.build({"name": name, **options})
    for task, own in features.items():
        found.observe(own[:seen], task, None if labels is None else labels[task][:seen])
    return found


@dataclass
class Material:
    """What all methods of a form and seed share.

    Attributes:
        halves: The base.
        rows: Rows of every task by split.
        sources: Folder of every task's adapter.
        folder: Where the cell keeps its files.
        right: Whether each test row is answered right, by adapter, once `singles` has run.
    """

    halves: Halves
    rows: dict[str, dict[str, Cached]]
    sources: dict[str, str]
    folder: Path

    def __post_init__(self) -> None:
        self.test, self.held = all_of(self.rows, "test"), all_of(self.rows, "validation")
        self.tasks = [row.task for row in self.test.rows]
        self.middle = {task: parts["train"].features() for task, parts in self.rows.items()}
        self.few = {task: parts["train"].take(range(32)) for task, parts in self.rows.items()}
        kept = self.folder / "right.pt"
        self.right: dict[str, Tensor] = torch.load(kept) if kept.is_file() else {}

    def labels(self) -> dict[str, list[str]]:
        """Return the class of every training row by task."""
        return {
            task: [row.candidates[row.answer] for row in parts["train"].rows]
            for task, parts in self.rows.items()
        }

    def score(self, right: Tensor) -> dict[str, float]:
        """Return the accuracies of answers to the test rows."""
        return task_means(right, self.tasks)

    def sent(self, names: Sequence[Any]) -> Tensor:
        """Return whether each test row is answered right by the adapter it is sent to."""
        return torch.tensor([bool(self.right[str(name)][i]) for i, name in enumerate(names)])
