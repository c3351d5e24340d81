"""Running a learner over a stream of tasks: training, evaluation, checkpoints, results."""

from moe_adapt.training.stream.result import StreamResult
from moe_adapt.training.stream.runner import StreamRunner

__all__ = ["StreamResult", "StreamRunner"]
