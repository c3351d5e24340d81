"""Instruction tasks from folders of data sets: labelled texts, and multiple-choice questions.

Each data set is a folder with ``train.jsonl`` and ``test.jsonl``, as `benchmarks/recipes/prepare.py` writes
them:

* ``{"text", "label"}``: the prompt is a question and the text, the choices are the labels, in words;
* ``{"question", "choices", "answer"}``: the answer is the number of the right choice.

A text task of hundreds of labels is many choices to score; `most_labels` keeps the first of them, in the
order of the alphabet, and the texts that have them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.data.labels import column_of, number_labels
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.streams.instruction_sources import read_json_lines
from moe_adapt.streams.instructions import Instruction, InstructionTask

__all__ = ["folder_task", "folder_tasks"]

Rows = list[tuple[str, dict[str, Any]]]


def folder_tasks(
    folder: str | Path,
    order: Sequence[str] | None = None,
    most_labels: int | None = None,
    question: str = "Which label fits the text?",
) -> list[InstructionTask]:
    """Return a task for every data set in a folder.

    Args:
        folder: Folder of the data sets' folders.
        order: Names of the data sets, in order; None takes all, sorted.
        most_labels: Most labels of a task of texts; None takes all.
        question: What is asked about texts.

    Raises:
        UserError: If there is none, or one of `order` is missing.
    """
    root = Path(folder)
    known = sorted(path.parent.name for path in root.glob("*/train.jsonl"))
    if not known:
        raise UserError(f"{root} holds no data set; expected folders with train.jsonl and test.jsonl.")
    for name in order or ():
        if name not in known:
            raise UserError(f"there is no {name}/train.jsonl in {root}.{did_you_mean(name, known)}")
    return [folder_task(root / name, most_labels, question) for name in order or known]


def folder_task(
    folder: str | Path, most_labels: int | None = None, question: str = "Which label fits the text?"
) -> InstructionTask:
    """Return a data set as a task, called like its folder.

    Args:
        folder: Folder of ``train.jsonl`` and ``test.jsonl``.
        most_labels: Most labels of a task of texts; None takes all.
        question: What is asked about texts.

    Raises:
        UserError: If a file is missing, or a row is neither a labelled text nor a question.
    """
    root = Path(folder)
    rows = {split: read_json_lines(root / f"{split}.jsonl") for split in ("train", "test")}
    first = rows["train"][0][1] if rows["train"] else {}
    origin: dict[str, Any] = {"data": root.name}
    if "text" not in first:
        made = {split: [_question(row, where) for where, row in found] for split, found in rows.items()}
    else:
        columns = {
            split: column_of(
                [_labelled(row, where)["label"] for where, row in found], str(root / f"{split}.jsonl")
            )
            for split, found in rows.items()
        }
        _, names = number_labels(columns["train"])
        labels = names[:most_labels]
        choices = _choices(labels, root)
        seen = set(names)
        for text in columns["test"].texts:
            if text not in seen:
                raise UserError(
                    f"{root / 'test.jsonl'} has the label {text!r}, which no training row has."
                    f"{did_you_mean(text, names)} Correct it, or add training rows."
                )
        origin |= {"labels": len(choices), "question": question}
        made = {
            split: _texts(found, columns[split].texts, dict(zip(labels, choices, strict=True)), question)
            for split, found in rows.items()
        }
    return InstructionTask(root.name, made["train"], made["test"], origin)


def _labelled(row: dict[str, Any], where: str) -> dict[str, Any]:
    if not (isinstance(row.get("text"), str) and "label" in row):
        raise UserError(f"{where}: expected 'text' and 'label', got {', '.join(map(repr, row))}.")
    return row


def _choices(labels: list[str], root: Path) -> tuple[str, ...]:
    """Return the labels in words; two that become the same words are an error."""
    owner: dict[str, str] = {}
    for label in labels:
        other = owner.setdefault(_words(label), label)
        if other != label:
            raise UserError(
                f"the labels {other!r} and {label!r} in {root} are both {_words(label)!r} in words: "
                "give them names "
                "that differ in more than case and underscores."
            )
    return tuple(owner)


def _texts(rows: Rows, labels: list[str], choices: dict[str, str], question: str) -> list[Instruction]:
    """Return the texts whose label is among the choices, a mapping from labels to their words."""
    return [
        Instruction(f"{question}\n{row['text'].strip()}", choices[label], tuple(choices.values()))
        for (_, row), label in zip(rows, labels, strict=True)
        if label in choices
    ]


def _question(row: dict[str, Any], where: str) -> Instruction:
    choices, answer = row.get("choices"), row.get("answer")
    told = isinstance(row.get("question"), str) and isinstance(choices, list) and isinstance(answer, int)
    if not told or not 0 <= answer < len(choices):  # type: ignore[operator, arg-type]
        raise UserError(
            f"{where}: expected 'question', 'choices' and the number of the right one as 'answer', or 'text' "
            f"and 'label'; got {', '.join(map(repr, row))}."
        )
    texts = tuple(str(choice) for choice in choices)  # type: ignore[union-attr]
    return Instruction(row["question"], texts[answer], texts)  # type: ignore[index]


def _words(label: str) -> str:
    """Return a label as words.

    >>> _words("card_arrival")
    'card arrival'
    """
    return label.replace("_", " ").strip().lower()
