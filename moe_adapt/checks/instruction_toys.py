"""Small instruction tasks, and a model without pretrained weights that answers them by choice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from moe_adapt.backbones.instructions import Chooser
from moe_adapt.backbones.text import mean_over_tokens
from moe_adapt.streams import Instruction, InstructionTask, TaskStream, instruction_stream

__all__ = ["ToyAnswerer", "toy_instructions"]

CHARACTERS, WIDTH = 128, 16
WORDS = (("red", "green", "blue"), ("cat", "dog", "cow"), ("one", "two", "six", "ten"))


class _Characters(nn.Module):
    """Embeddings of characters and two layers on each of them, with a residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        return hidden + self.down(torch.tanh(self.up(hidden)))


class ToyAnswerer(Chooser):
    """A fixed network on characters whose mean vector picks the nearest choice.

    Its layers are called ``up`` and ``down``.

    Args:
        seed: Fixes its weights.
    """

    def __init__(self, seed: int = 0) -> None:
        model = _Characters()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        super().__init__(model, "toy", temperature=0.1)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of each text's character vectors."""
        ids = [torch.tensor([ord(letter) % CHARACTERS for letter in text]) for text in texts]
        mask = pad_sequence([torch.ones_like(row) for row in ids], True).to(self.device)
        hidden = self.model(input_ids=pad_sequence(ids, True).to(self.device), attention_mask=mask)
        return mean_over_tokens(hidden, mask)


def toy_instructions(tasks: int = 3, train: int = 12, test: int = 6, **options: Any) -> TaskStream:
    """Return a stream of tasks that ask which word of the task's few is in a text among noise.

    Args:
        tasks: Number of tasks, at most three.
        train: Training instructions of each.
        test: Test instructions of each.
        options: Arguments of `instruction_stream`.
    """
    return instruction_stream([_task(index, train, test) for index in range(tasks)], **options)


def _task(index: int, train: int, test: int) -> InstructionTask:
    words, rng = WORDS[index], np.random.default_rng(index)

    def some(count: int) -> list[Instruction]:
        answers = [words[number % len(words)] for number in range(count)]
        noise = ["".join(rng.choice(list("qxzjkv"), size=rng.integers(2, 6))) for _ in answers]
        return [
            Instruction(f"{before} {answer} {index}{index}?", answer, tuple(words))
            for before, answer in zip(noise, answers, strict=True)
        ]

    return InstructionTask(f"words {index}", some(train), some(test), {"toy": index})
