"""Instruction streams: tasks of prompts and answers, one after the other, without classes.

A sample is a dict of ``prompt``, ``answer``, ``choices`` (a list, empty for free answers), optionally
``image`` (a float tensor [3, H, W]), and ``row``. Nothing is tokenised here: how a prompt becomes numbers
is the model's business, so one stream serves language models, encoders and vision-language models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.streams.base import TaskStream

__all__ = ["Instruction", "InstructionTask", "hold_out", "instruction_stream"]


@dataclass(frozen=True)
class Instruction:
    """One prompt with its answer.

    Attributes:
        prompt: What is asked.
        answer: The right answer.
        choices: The possible answers, the right one among them; empty for free answers.
        image: What the prompt is about, [3, H, W].
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    image: Tensor | None = None

    def sample(self) -> dict[str, Any]:
        """Return the dict that learners get."""
        found = {"prompt": self.prompt, "answer": self.answer, "choices": list(self.choices)}
        return found if self.image is None else {**found, "image": self.image}


@dataclass(frozen=True)
class InstructionTask:
    """Training and test instructions of one task.

    Attributes:
        name: What the task is called.
        train: Training instructions.
        test: Test instructions.
        origin: Where they come from, as JSON types.
    """

    name: str
    train: Sequence[Instruction]
    test: Sequence[Instruction]
    origin: dict[str, Any] = field(default_factory=dict)


class _Samples:
    """A map-style data set of instructions."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.instructions = instructions

    def __len__(self) -> int:
        return len(self.instructions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.instructions[index].sample()


def hold_out(
    instructions: Sequence[Instruction], share: float, seed: int, name: str
) -> tuple[list[Instruction], list[Instruction]]:
    """Split instructions of a task that has no test set, at random.

    Args:
        instructions: All of them.
        share: Share that becomes the test set, in (0, 1); at least one instruction.
        seed: Fixes the split.
        name: Name of the task, for the message.

    Raises:
        UserError: If there are fewer than two instructions.
    """
    if len(instructions) < 2:
        raise UserError(
            f"the task {name!r} has {len(instructions)} instructions and no test set: nothing can be held "
            "out; give it test instructions."
        )
    order = np.random.default_rng(seed).permutation(len(instructions))
    cut = min(max(1, round(share * len(order))), len(order) - 1)
    return [instructions[i] for i in order[cut:]], [instructions[i] for i in order[:cut]]


def instruction_stream(
    tasks: Sequence[InstructionTask],
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
    origin: dict[str, Any] | None = None,
) -> TaskStream:
    """Return the stream of some tasks in the order given.

    Args:
        tasks: The tasks.
        max_train: Most training instructions per task, chosen at random; None takes all.
        max_test: Most test instructions per task.
        seed: Fixes the choice.
        origin: What else fixes the stream, as JSON types.

    Raises:
        UserError: If there are no tasks, names are repeated, a task has no instructions, or an instruction
            has an empty prompt or answer, or an answer that is not among its choices.
    """
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not tasks or repeated:
        what = f"the name {repeated[0]!r} twice" if repeated else "no task"
        raise UserError(f"a stream of instructions has {what}; give every task a name of its own.")
    pools: dict[str, list[Instruction]] = {"train": [], "test": []}
    rows: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for number, task in enumerate(tasks):
        for split, limit in (("train", max_train), ("test", max_test)):
            instructions = list(getattr(task, split))
            check_instructions(instructions, f"{split} set of the task {task.name!r}")
            if limit is not None and len(instructions) > limit:
                generator = np.random.default_rng([seed, number, split == "test"])
                chosen = np.sort(generator.permutation(len(instructions))[:limit])
                instructions = [instructions[i] for i in chosen]
            start = len(pools[split])
            pools[split] += instructions
            rows[split].append(np.arange(start, start + len(instructions)))
    facts = {
        "sources": [task.origin for task in tasks],
        "max_train": max_train,
        "max_test": max_test,
        "seed": seed,
        **(origin or {}),
    }
    return TaskStream(
        "instruction",
        train=_Samples(pools["train"]),
        test=_Samples(pools["test"]),
        train_rows=rows["train"],
        test_rows=rows["test"],
        task_names=names,
        origin=facts,
    )


def check_instructions(instructions: Sequence[Instruction], where: str) -> None:
    """Raise `UserError` if there are none, or one cannot be learned or scored.

    Args:
        instructions: The instructions.
        where: What they are, for the message.
    """
    if not instructions:
        raise UserError(f"the {where} is empty; a task has at least one training and one test instruction.")
    for number, instruction in enumerate(instructions):
        for what in ("prompt", "answer"):
            if not getattr(instruction, what).strip():
                raise UserError(
                    f"instruction {number} of the {where} has an empty {what}; fill it in or drop it."
                )
        if instruction.choices and instruction.answer not in instruction.choices:
            raise UserError(
                f"instruction {number} of the {where} has the answer {instruction.answer!r}, which is none "
                f"of its choices: {', '.join(map(repr, instruction.choices[:6]))}."
            )
        if len(set(instruction.choices)) != len(instruction.choices):
            raise UserError(f"instruction {number} of the {where} has the same choice twice.")
