"""Eight text tasks whose adapters are trained apart: topics, sentiment, acceptability, paraphrase, intents.

A row has a text, the candidates among which it is to be answered, and the place of the right one. In the form
`names` candidates are the names of the task's labels. In the form `codes` a task has ten classes at most, and
each class is coded by one of ten words, drawn anew for every task and seed: the answers' formats collide, and
nothing but the right adapter knows what a word means. Routers see texts alone.
"""

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CODES", "READERS", "Form", "Row", "load"]

#: How a task's classes are called.
Form = Literal["names", "codes"]

Pairs = list[tuple[str, str]]
CODES = ("amber", "birch", "cobalt", "dune", "ember", "fjord", "grove", "harbor", "indigo", "jasper")


@dataclass(frozen=True)
class Row:
    """One text and the candidates for its answer.

    Attributes:
        text: The text.
        candidates: The task's answers.
        answer: Place of the right one.
        task: Name of the task.
    """

    text: str
    candidates: tuple[str, ...]
    answer: int
    task: str


def _cola(data: Path) -> tuple[Pairs, Pairs]:
    with zipfile.ZipFile(data / "glue_small" / "cola_public.zip") as archive:
        splits = []
        for split in ("in_domain_train", "in_domain_dev"):
            lines = io.StringIO(archive.read(f"cola_public/raw/{split}.tsv").decode())
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            splits.append([(row[3], ("unacceptable", "acceptable")[int(row[1])]) for row in rows])
    return splits[0], splits[1]


def _sst2(data: Path) -> tuple[Pairs, Pairs]:
    splits = []
    for split in ("train", "dev"):
        with (data / "glue_small" / f"sst2_{split}.tsv").open(encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            splits.append([(row[0], ("negative", "positive")[int(row[1])]) for row in rows])
    return splits[0], splits[1]


def _olora(name: str, splits: tuple[str, ...]) -> Callable[[Path], tuple[Pairs, Pairs]]:
    def read(data: Path) -> tuple[Pairs, Pairs]:
        found = []
        for split in splits:
            path = data / "olora_cl_benchmark" / f"{name}_{split}.json.gz"
            with gzip.open(path, "rt", encoding="utf-8") as file:
                found.append([(row["sentence"], row["label"]) for row in json.load(file)])
        if len(found) == 1:  # one file for both: its even rows are trained on
            found = [found[0][::2], found[0][1::2]]
        return found[0], found[1]

    return read


def _banking(data: Path) -> tuple[Pairs, Pairs]:
    splits = []
    for split in ("train", "test"):
        with (data / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            splits.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return splits[0], splits[1]


def _clinc(data: Path) -> tuple[Pairs, Pairs]:
    raw = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    return [(t, label) for t, label in raw["train"]], [(t, label) for t, label in raw["test"]]


def _hwu(data: Path) -> tuple[Pairs, Pairs]:
    splits = []
    for split in ("train", "test"):
        folder = data / "intent_hwu64"
        texts = (folder / f"{split}.seq.in").read_text(encoding="utf-8").splitlines()
        labels = (folder / f"{split}.label").read_text(encoding="utf-8").splitlines()
        splits.append(list(zip(texts, labels, strict=True)))
    return splits[0], splits[1]


READERS: dict[str, Callable[[Path], tuple[Pairs, Pairs]]] = {
    "agnews": _olora("agnews", ("train", "test")),
    "dbpedia": _olora("dbpedia", ("test",)),
    "sst2": _sst2,
    "cola": _cola,
    "qqp": _olora("QQP", ("train", "test")),
    "banking77": _banking,
    "clinc150": _clinc,
    "hwu64": _hwu,
}


def load(
    data: Path, task: str, form: Form, train: int, validation: int, test: int, seed: int
) -> dict[str, list[Row]]:
    """Return the rows ``train``, ``validation`` and ``test`` of a task; the first two are of one split.

    Args:
        data: Folder of the raw files.
        task: A key of `READERS`.
        form: How classes are called.
        train: Training rows.
        validation: Validation rows.
        test: Test rows, from the task's own test split.
        seed: Fixes which rows, classes and codes.
    """
    rng = random.Random(f"{seed} {task} {form}")
    train_pairs, test_pairs = READERS[task](data)
    labels = sorted({label for _, label in train_pairs})
    spoken = {label: label.replace("_", " ").lower() for label in labels}
    if form == "codes":
        labels = sorted(rng.sample(labels, min(len(labels), len(CODES))))
        spoken = dict(zip(labels, rng.sample(CODES, len(labels)), strict=True))
    known = set(labels)
    candidates = tuple(spoken[label] for label in labels)
    place = {label: number for number, label in enumerate(labels)}
    own = rng.sample([pair for pair in train_pairs if pair[1] in known], train + validation)
    foreign = [pair for pair in test_pairs if pair[1] in known]
    parts = {
        "train": own[:train],
        "validation": own[train:],
        "test": rng.sample(foreign, min(test, len(foreign))),
    }
    return {
        name: [Row(text, candidates, place[label], task) for text, label in pairs]
        for name, pairs in parts.items()
    }
