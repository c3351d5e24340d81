"""Text data sets of the recipes: raw files to rows that the data modules read.

Intents become ``{text, label}``, multiple-choice questions become ``{question, choices, answer, response}``:
`answer` is an index into `choices` and `response` the right choice's text.
"""

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["TEXT_SETS", "parse_question", "write_jsonl"]

Rows = list[dict[str, Any]]

_QUESTION = re.compile(
    r"Please choose the correct answer to the question: (?P<question>.+?)\n\n"
    r"(?P<choices>Answer1: .+)\n\nAnswer format: (?P<format>answer\d+(?:/answer\d+)*)",
    re.DOTALL,
)
_STATEMENT = re.compile(
    r"Please answer the following question with true or false, question: (?P<question>.+)\n\n"
    r"Answer format: true/false",
    re.DOTALL,
)


def parse_question(row: dict[str, str], where: str) -> dict[str, Any]:
    r"""Split an instruction of the LLM-Adapters collection into question, choices and answer.

    Args:
        row: The keys ``instruction`` and ``answer`` ("answer2") are read.
        where: File and row number, for the error message.

    Raises:
        UserError: If the row does not have the expected form.

    >>> text = "Please choose the correct answer to the question: Is ice\n\nAnswer1: hot Answer2: cold"
    >>> row = {"instruction": text + "\n\nAnswer format: answer1/answer2", "answer": "answer2"}
    >>> parse_question(row, "row 0")
    {'question': 'Is ice', 'choices': ['hot', 'cold'], 'answer': 1, 'response': 'cold'}
    """
    match = _QUESTION.fullmatch(row["instruction"])
    if match is None:
        raise UserError(f"{where}: expected question, 'Answer1: ...' and 'Answer format: ...' in {row!r}.")
    names = match["format"].split("/")
    rest, choices = match["choices"], []
    for number in range(len(names), 0, -1):
        rest, marker, choice = rest.rpartition(f"Answer{number}: ")
        if not marker or not choice.strip():
            raise UserError(f"{where}: choice {number} of {len(names)} is missing or empty in {row!r}.")
        choices.insert(0, choice.strip())
    if rest or row["answer"] not in names:
        raise UserError(f"{where}: the choices or the answer do not match the answer format in {row!r}.")
    answer = names.index(row["answer"])
    question = match["question"].strip()
    return {"question": question, "choices": choices, "answer": answer, "response": choices[answer]}


def parse_yes_no(row: dict[str, str], where: str) -> dict[str, Any]:
    """Do the same for a question that is answered by ``true`` or ``false``; the choices are yes and no."""
    match = _STATEMENT.fullmatch(row["instruction"])
    if match is None or row["answer"] not in ("true", "false"):
        raise UserError(f"{where}: expected a question to answer with true or false in {row!r}.")
    answer, choices = ("true", "false").index(row["answer"]), ["yes", "no"]
    question = match["question"].strip()
    return {"question": question, "choices": choices, "answer": answer, "response": choices[answer]}


def clinc150(data: Path) -> dict[str, Rows]:
    """CLINC150: 150 intents; the out-of-scope rows are left out."""
    raw = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    names = {"train": "train", "validation": "val", "test": "test"}
    return {split: [{"text": t, "label": label} for t, label in raw[key]] for split, key in names.items()}


def banking77(data: Path) -> dict[str, Rows]:
    """Banking77: 77 intents, no validation split of its own."""
    splits = {}
    for split in ("train", "test"):
        with (data / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            splits[split] = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
    return splits


def hwu64(data: Path) -> dict[str, Rows]:
    """HWU64: 64 intents of a home assistant; line i of a text file has the label of line i."""
    splits = {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        columns = [
            (data / "intent_hwu64" / f"{name}.{ending}").read_text(encoding="utf-8").splitlines()
            for ending in ("seq.in", "label")
        ]
        splits[split] = [{"text": text, "label": label} for text, label in zip(*columns, strict=True)]
    return splits


def intents(data: Path) -> dict[str, Rows]:
    """CLINC150, Banking77 and HWU64 as one set of 289 intents.

    An intent that two sources have under one name (``exchange_rate``, ``play_music``) is one intent. Others
    mean nearly the same under different names (``alarm`` and ``alarm_set``); they stay apart, which bounds
    what any method can reach.
    """
    sources = [clinc150(data), banking77(data), hwu64(data)]
    return {split: [row for source in sources for row in source[split]] for split in ("train", "test")}


def _questions(
    data: Path, name: str, parse: Callable[[dict[str, str], str], dict[str, Any]] = parse_question
) -> dict[str, Rows]:
    splits = {}
    for split in ("train", "test"):
        path = data / "llm_adapters_qa" / f"{name}_{split}.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
        splits[split] = [parse(row, f"{path.name}, row {i}") for i, row in enumerate(rows)]
    return splits


def arc_easy(data: Path) -> dict[str, Rows]:
    """ARC-Easy: grade-school science questions with three to five choices."""
    return _questions(data, "ARC-Easy")


def arc_challenge(data: Path) -> dict[str, Rows]:
    """ARC-Challenge: the harder ones of ARC."""
    return _questions(data, "ARC-Challenge")


def boolq(data: Path) -> dict[str, Rows]:
    """BoolQ without its passages: yes or no."""
    return _questions(data, "boolq", parse_yes_no)


def openbookqa(data: Path) -> dict[str, Rows]:
    """OpenBookQA: four choices; five training rows occur twice, as in the source."""
    return _questions(data, "openbookqa")


#: Name on the command line -> function from the raw data folder to rows by split.
TEXT_SETS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    "clinc150": clinc150,
    "banking77": banking77,
    "hwu64": hwu64,
    "intents": intents,
    "arc_easy": arc_easy,
    "arc_challenge": arc_challenge,
    "boolq": boolq,
    "openbookqa": openbookqa,
}


def write_jsonl(splits: dict[str, Rows], folder: Path) -> dict[str, int]:
    """Write one ``<split>.jsonl`` per split and return the row counts."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {split: len(rows) for split, rows in splits.items()}
