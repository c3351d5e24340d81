r"""Instruction tasks from files: JSON lines, and the O-LoRA benchmark with its task orders.

A line of JSON has ``prompt`` and ``answer``, and optionally ``choices``. A task of the O-LoRA benchmark is
a list of ``{"sentence", "label"}`` with a list of labels beside it (data of the repository
cmnfriend/O-LoRA, folder ``CL_Benchmark``); the label is the answer, the labels are the choices, and a line
of instruction goes before the sentence.

What a copy of the benchmark lacks is not replaced. A task without a test set has a fifth of its training
set held out, one without a training set is split in the same way, and one that is absent is left out; all
of it is in the stream's manifest, and the order's name then says how many tasks there are.

Reference:
    Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning" (O-LoRA), arXiv
    2310.14152.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.reading import foreign, read_json
from moe_adapt.streams.instructions import Instruction, InstructionTask, hold_out
from moe_adapt.textfiles import json_lines, read_text

__all__ = [
    "OLORA_ORDERS",
    "jsonl_tasks",
    "olora_order",
    "olora_task",
    "read_instructions",
    "read_json_lines",
]

_STANDARD = [
    ["dbpedia", "amazon", "yahoo", "agnews"],
    ["dbpedia", "amazon", "agnews", "yahoo"],
    ["yahoo", "amazon", "agnews", "dbpedia"],
]
_LONG = [
    "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo",
    "MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo",
    "yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC",
]
#: The published orders: 1 to 3 have four tasks, 4 to 6 fifteen.
OLORA_ORDERS: dict[int, list[str]] = {
    number: order for number, order in enumerate([*_STANDARD, *(line.split() for line in _LONG)], start=1)
}

_SENTIMENT = "What is the sentiment of the text?"
_LOGIC = "What is the logical relation of sentence 1 to sentence 2?"
_QUESTIONS = {
    "agnews": "What is the topic of the text?",
    "dbpedia": "What is the topic of the text?",
    "yahoo": "What is the topic of the text?",
    "amazon": _SENTIMENT,
    "yelp": _SENTIMENT,
    "IMDB": _SENTIMENT,
    "SST-2": _SENTIMENT,
    "MNLI": _LOGIC,
    "CB": _LOGIC,
    "RTE": _LOGIC,
    "QQP": "Do the two sentences have the same meaning?",
    "BoolQA": "Is the answer to the question true or false?",
    "WiC": "Does the word have the same meaning in both sentences?",
    "COPA": "Which one is right?",
    "MultiRC": "Is the given answer to the question true or false?",
}


def read_json_lines(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a JSON-lines file, also ``.gz``, each with where it is, for messages.

    Raises:
        UserError: If there is no such file, or a line is no object.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file {file}; expected JSON lines.")
    return [(f"{file.name}, line {number}", row) for number, row in json_lines(file)]


def read_instructions(path: str | Path) -> list[Instruction]:
    """Return the instructions of a JSON-lines file, also ``.gz``.

    Raises:
        UserError: If there is no such file, or a line is not an object with a prompt and an answer.
    """
    return [_instruction(row, where) for where, row in read_json_lines(path)]


def _instruction(row: dict[str, Any], where: str) -> Instruction:
    if not all(isinstance(row.get(key), str) for key in ("prompt", "answer")):
        raise UserError(
            f"{where}: expected an object with the texts 'prompt' and 'answer', got {str(row)[:80]!r}."
        )
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where}: 'choices' is a list of texts, got {choices!r}.")
    return Instruction(row["prompt"], row["answer"], tuple(choices))


def jsonl_tasks(
    folder: str | Path, order: Sequence[str] | None = None, test_share: float = 0.2
) -> list[InstructionTask]:
    """Return the tasks of a folder of ``<task>_train.jsonl`` and ``<task>_test.jsonl`` files.

    Args:
        folder: The folder.
        order: Names of the tasks, in order; None sorts them.
        test_share: Share held out of tasks without a test file.

    Raises:
        UserError: If there is no task, or one of `order` is missing.
    """
    root = Path(folder)
    known = sorted({p.name.split("_train.")[0] for p in root.glob("*_train.jsonl*")})
    if not known:
        raise UserError(f"{root} holds no task; expected files such as news_train.jsonl and news_test.jsonl.")
    tasks = []
    for name in known if order is None else order:
        if name not in known:
            raise UserError(f"there is no {name}_train.jsonl in {root}.{did_you_mean(name, known)}")
        train = read_instructions(_one_of(root, f"{name}_train.jsonl"))
        held = not any(root.glob(f"{name}_test.jsonl*"))
        if held:
            train, test = hold_out(train, test_share, seed=0, name=name)
        else:
            test = read_instructions(_one_of(root, f"{name}_test.jsonl"))
        tasks.append(
            InstructionTask(name, train, test, {"task": name, "test": "held out" if held else "own"})
        )
    return tasks


def _one_of(root: Path, name: str) -> Path:
    return root / name if (root / name).is_file() else root / f"{name}.gz"


def olora_task(folder: str | Path, name: str, test_share: float = 0.2) -> InstructionTask:
    """Return a task of the O-LoRA benchmark.

    Args:
        folder: Folder of ``<name>_train.json.gz``, ``<name>_test.json.gz`` and ``<name>_labels.json``.
        name: Name of the task, such as ``agnews``.
        test_share: Share held out where a split is missing.

    Raises:
        UserError: If the task has neither split.
    """
    root = Path(folder)
    labels_file = root / f"{name}_labels.json"
    splits = {split: root / f"{name}_{split}.json.gz" for split in ("train", "test")}
    present = {split: path for split, path in splits.items() if path.is_file()}
    if not present or not labels_file.is_file():
        raise UserError(
            f"{root} has no task {name!r}: expected {labels_file.name} and {splits['train'].name}."
        )
    labels = read_json(labels_file, "a list of labels", kind=list)
    rows = {split: _olora_rows(path, name, labels) for split, path in present.items()}
    origin: dict[str, Any] = {"benchmark": "O-LoRA", "task": name, "splits": sorted(present)}
    if len(present) == 2:
        return InstructionTask(name, rows["train"], rows["test"], origin)
    (only,) = rows.values()
    train, test = hold_out(only, test_share, seed=0, name=name)
    return InstructionTask(name, train, test, {**origin, "held_out": test_share})


def _olora_rows(path: Path, name: str, labels: list[str]) -> list[Instruction]:
    """Return the rows of a file; those without a label (MNLI's ``-``) or text are left out."""
    with foreign(path, "a list of objects with 'sentence' and 'label'"):
        rows = [(row["sentence"].strip(), row["label"]) for row in json.loads(read_text(path))]
    unknown = sorted({label for _, label in rows if label not in labels and label != "-"})
    if unknown:
        raise UserError(f"{path} has the label {unknown[0]!r}, which {name}_labels.json does not list.")
    question = _QUESTIONS.get(name, "What is the label of the text?")
    return [
        Instruction(f"{question}\n{sentence}", label, tuple(labels))
        for sentence, label in rows
        if label != "-" and sentence
    ]


def olora_order(folder: str | Path, number: int, test_share: float = 0.2) -> list[InstructionTask]:
    """Return the tasks of a published order, as far as the folder has them.

    Args:
        folder: Folder of the benchmark.
        number: 1 to 3 for the standard benchmark (four tasks), 4 to 6 for the long one (fifteen).
        test_share: Share held out where a split is missing.

    Raises:
        UserError: If there is no such order, or fewer than two of its tasks are there.
    """
    if number not in OLORA_ORDERS:
        raise UserError(f"the O-LoRA benchmark has orders 1 to {len(OLORA_ORDERS)}, not {number}.")
    names = OLORA_ORDERS[number]
    present = [name for name in names if (Path(folder) / f"{name}_labels.json").is_file()]
    if len(present) < 2:
        raise UserError(
            f"{folder} has {len(present)} of the {len(names)} tasks of order {number}; expected its files."
        )
    return [olora_task(folder, name, test_share) for name in present]
