"""What a run over a stream found, as one object and one JSON file."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.continual import accuracy_seen, continual_metrics, final_class_mean
from moe_adapt.training.stream.verdicts import Verdicts, artefacts

__all__ = ["StreamResult"]


@dataclass
class StreamResult:
    """Accuracies, costs and origin of a run.

    Attributes:
        matrix: Right answers after every task on every task.
        within: The same with the classes of a sample's own task as the only candidates.
        tasks: One dict per task: name, classes, times in seconds, steps, sizes in bytes.
        manifest: What the run was made with: stream, learner, seed, versions.
        classes: Right answers and test samples of each class after the last task, two lists [C].
        routing: Share of picks of each expert by site, if there are routers.
        attribution: Drift of routers and experts and what it cost, if it was measured.
        verdicts: Right answers after every task on every task by verdict, if written answers were judged.
    """

    matrix: AccuracyMatrix
    within: AccuracyMatrix
    tasks: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, list[int]] = field(default_factory=dict)
    routing: dict[str, list[float]] = field(default_factory=dict)
    attribution: dict[str, Any] = field(default_factory=dict)
    verdicts: Verdicts = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the last task was tested."""
        return len(self.matrix) - 1 in self.matrix.measured()

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a finished run by name; ``within_task_`` is the task-incremental reading."""
        found = continual_metrics(self.matrix)
        inside = continual_metrics(self.within)
        found |= {f"within_task_{name}": inside[name] for name in ("final_accuracy", "final_task_mean")}
        if self.classes:
            correct, total = (np.array(self.classes[key]) for key in ("correct", "total"))
            found["final_class_mean"] = final_class_mean(correct, total)
        for name, counts in self.verdicts.items():
            matrix = AccuracyMatrix(self.matrix.total, counts)
            found |= {
                f"{name}_{key}": value
                for key, value in continual_metrics(matrix).items()
                if key in ("final_task_mean", "backward_transfer")
            }
        return found

    def format_artefacts(self) -> list[dict[str, Any]]:
        """Return how much of each task's drop is the form of answers; empty if they were not judged."""
        return artefacts(self.verdicts, self.matrix.total) if self.verdicts else []

    def costs(self) -> dict[str, float]:
        """Return times, sizes and forwards of the whole run."""
        learned = [task for task in self.tasks if task["learned"]]
        tested = [task for task in learned if "forwards_per_sample" in task]
        seconds = {
            name: sum(task["seconds"][name] for task in learned) for name in ("learn", "end", "evaluate")
        }
        return {
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "seconds_per_task": sum(seconds.values()) / max(1, len(learned)),
            "overhead_seconds": sum(task["seconds"]["overhead"] for task in learned),
            "steps": sum(task["steps"] for task in learned),
            "trainable_parameters": max((task["trainable_parameters"] for task in learned), default=0),
            **{f"{name}_bytes": value for name, value in (learned[-1]["bytes"] if learned else {}).items()},
            "forwards_per_sample": max((task["forwards_per_sample"] for task in tested), default=0.0),
        }

    def table(self) -> list[dict[str, Any]]:
        """Return one flat row per task, for a table."""
        seen = accuracy_seen(self.matrix)
        rows = []
        for task in self.tasks:
            flat: dict[str, Any] = {"task": task["task"], "name": task["name"]}
            flat["accuracy_seen"] = seen[task["task"]]
            for key, value in task.items():
                if isinstance(value, dict):
                    flat |= {f"{key}_{n}": item for n, item in value.items() if not isinstance(item, dict)}
                else:
                    flat[key] = value
            rows.append(flat)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "status": "finished" if self.done else "running",
            "metrics": self.metrics() if self.done else {},
            "costs": self.costs(),
            "accuracy_matrix": self.matrix.to_dict(),
            "accuracy_matrix_within_task": self.within.to_dict(),
            "class_counts": self.classes,
            "routing": self.routing,
            "attribution": self.attribution,
            "verdicts": self.verdicts,
            "format_artefacts": self.format_artefacts() if self.done else [],
            "tasks": self.tasks,
            "manifest": self.manifest,
        }
