"""What a run over a stream found, as one object and one JSON file."""

from dataclasses import dataclass, field
from typing import Any

from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix

__all__ = ["StreamResult"]


@dataclass
class StreamResult:
    """Accuracies, costs and origin of a run.

    Attributes:
        matrix: Right answers after every task on every task.
        within: The same with the classes of a sample's own task as the only candidates.
        tasks: One dict per learned task: name, classes, times in seconds, steps, sizes in bytes.
        manifest: What the run was made with: stream, learner, seed, versions.
    """

    matrix: AccuracyMatrix
    within: AccuracyMatrix
    tasks: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "accuracy_matrix": self.matrix.to_dict(),
            "accuracy_matrix_within_task": self.within.to_dict(),
            "tasks": self.tasks,
            "manifest": self.manifest,
        }
