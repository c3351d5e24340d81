"""Changed tasks for studies of mechanisms: overlap, contradiction, repetition, another answer format.

Each takes tasks and returns tasks. What they can show: `overlap_tasks` is the dial on which old-like,
ambiguous and new tokens exist by construction; with `conflicting_tasks` a method that protects old
behaviour must fail, which shows the price of protection; `repeat_tasks` shows whether a method profits from
having been there; `letter_answers` changes nothing but the format of answers, so every drop it causes is
superficial.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_adapt.errors import UserError
from moe_adapt.streams.instructions import Instruction, InstructionTask

__all__ = ["conflicting_tasks", "letter_answers", "overlap_tasks", "repeat_tasks"]


def overlap_tasks(tasks: Sequence[InstructionTask], overlap: float, seed: int = 0) -> list[InstructionTask]:
    """Mix training instructions of the first task into every later one, which keeps its size.

    Args:
        tasks: The tasks.
        overlap: Share of each later task's training set that comes from the first, in [0, 1].
        seed: Fixes which.

    Raises:
        UserError: If `overlap` is out of range.
    """
    if not 0 <= overlap <= 1:
        raise UserError(f"overlap is a share between 0 and 1, got {overlap}.")
    generator, result = np.random.default_rng(seed), [tasks[0]]
    first = list(tasks[0].train)
    for task in tasks[1:]:
        own = list(task.train)
        count = round(overlap * len(own))
        kept = [own[i] for i in generator.permutation(len(own))[: len(own) - count]]
        borrowed = [first[i] for i in generator.choice(len(first), size=count, replace=count > len(first))]
        mixed = [*kept, *borrowed]
        order = generator.permutation(len(mixed))
        result.append(
            replace(task, train=[mixed[i] for i in order], origin={**task.origin, "overlap": overlap})
        )
    return result


def conflicting_tasks(task: InstructionTask, number: int = 2) -> list[InstructionTask]:
    """Return the same prompts again with every answer moved to the next choice.

    Args:
        task: A task whose instructions have choices.
        number: How many tasks to return, the given one first.

    Raises:
        UserError: If an instruction has fewer than two choices.
    """
    return [
        InstructionTask(
            task.name if shift == 0 else f"{task.name}, answers moved by {shift}",
            [_moved(one, shift) for one in task.train],
            [_moved(one, shift) for one in task.test],
            {**task.origin, "answers_moved_by": shift},
        )
        for shift in range(number)
    ]


def _moved(instruction: Instruction, shift: int) -> Instruction:
    choices = instruction.choices
    if len(choices) < 2:
        raise UserError("conflicting answers need at least two choices per instruction.")
    return replace(instruction, answer=choices[(choices.index(instruction.answer) + shift) % len(choices)])


def repeat_tasks(tasks: Sequence[InstructionTask], order: Sequence[int]) -> list[InstructionTask]:
    """Return tasks in an order that may name one several times; the later times have names of their own.

    A repeated task is tested on its test set again, under its own name.

    Args:
        tasks: The tasks.
        order: Positions in `tasks`, such as [0, 1, 0].

    Raises:
        UserError: If a position does not exist.
    """
    result, times = [], dict.fromkeys(range(len(tasks)), 0)
    for position in order:
        if position not in times:
            raise UserError(f"there are tasks 0 to {len(tasks) - 1}, not {position}.")
        times[position] += 1
        task, time = tasks[position], times[position]
        result.append(task if time == 1 else replace(task, name=f"{task.name}, time {time}"))
    return result


def letter_answers(task: InstructionTask) -> InstructionTask:
    """Return the task with its choices listed in the prompt and letters as answers.

    Args:
        task: A task whose instructions have choices, at most 26.
    """
    return replace(
        task,
        name=f"{task.name}, letters",
        train=[_lettered(one) for one in task.train],
        test=[_lettered(one) for one in task.test],
        origin={**task.origin, "answers": "letters"},
    )


def _lettered(instruction: Instruction) -> Instruction:
    choices = instruction.choices
    if not 2 <= len(choices) <= 26:
        raise UserError(f"letters as answers need 2 to 26 choices, got {len(choices)}.")
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    listed = "\n".join(f"{letter}: {choice}" for letter, choice in zip(letters, choices, strict=True))
    answer = letters[choices.index(instruction.answer)]
    return replace(
        instruction, prompt=f"{instruction.prompt}\n{listed}", answer=answer, choices=tuple(letters)
    )
