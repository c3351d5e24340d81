"""A few stored samples of every task, as a buffer of bytes: what replay and prompts under protection need.

Samples are kept as JSON in one byte tensor, so that they are in every checkpoint and in every count of
stored memory.
"""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.streams import Batch, Task

__all__ = ["SampleMemory"]


class SampleMemory(nn.Module):
    """Stored text samples.

    Args:
        per_task: Samples kept of each task.
    """

    stored: Tensor

    def __init__(self, per_task: int) -> None:
        super().__init__()
        if per_task < 1:
            raise UserError(f"a memory keeps at least one sample per task, got {per_task}.")
        self.per_task = per_task
        self.register_buffer("stored", torch.zeros(0, dtype=torch.uint8))
        self._samples: list[dict[str, Any]] = []
        self._decoded = 0

    def add(self, task: Task) -> None:
        """Keep random training samples of a task.

        Raises:
            UserError: If they hold anything but texts.
        """
        generator = np.random.default_rng(task.index)
        kept = self.samples()
        for row in generator.permutation(len(task.train))[: self.per_task]:
            sample = {key: value for key, value in task.train[int(row)].items() if key != "row"}
            if any(isinstance(value, Tensor) for value in sample.values()):
                raise UserError(
                    "the memory keeps texts only; a stream with images cannot be replayed from it."
                )
            kept.append(sample)
        self.stored = torch.frombuffer(bytearray(json.dumps(kept).encode()), dtype=torch.uint8).to(
            self.stored.device
        )

    def samples(self) -> list[dict[str, Any]]:
        """Return everything stored."""
        if self._decoded != len(self.stored):
            self._samples = json.loads(bytes(self.stored.cpu().numpy().tobytes()))
            self._decoded = len(self.stored)
        return list(self._samples)

    def draw(self, count: int) -> Batch:
        """Return random stored samples as a batch; torch's global generator draws."""
        samples = self.samples()
        chosen = [samples[i] for i in torch.randint(len(samples), (count,)).tolist()]
        batch: Batch = {key: [sample[key] for sample in chosen] for key in chosen[0]}
        return {**batch, "row": torch.full((count,), -1)}

    def __len__(self) -> int:
        return len(self.samples()) if len(self.stored) else 0
