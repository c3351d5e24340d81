"""The mixture of text tasks that the comparison trains on: real sentences, one classifier for all.

Five tasks of different kinds: acceptability (CoLA), sentiment (SST-2), paraphrase (QQP), topics (AG News) and
intents (ten of CLINC150's). Every text begins with the name of its task, as an instruction would; labels are
``<task>:<label>``, and the choice is among the labels of all tasks: nobody tells the model the task.
"""

import csv
import gzip
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

__all__ = ["TASKS", "mixture"]

Rows = list[dict[str, str]]
TASKS = ("cola", "sst2", "qqp", "agnews", "clinc")


def _cola(data: Path) -> tuple[Rows, Rows]:
    with zipfile.ZipFile(data / "glue_small" / "cola_public.zip") as archive:
        splits = []
        for split in ("in_domain_train", "in_domain_dev"):
            text = archive.read(f"cola_public/raw/{split}.tsv").decode()
            rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
            splits.append([{"text": row[3], "label": ("wrong", "right")[int(row[1])]} for row in rows])
    return splits[0], splits[1]


def _sst2(data: Path) -> tuple[Rows, Rows]:
    splits = []
    for split in ("train", "dev"):
        with (data / "glue_small" / f"sst2_{split}.tsv").open(encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = ("negative", "positive")
            splits.append([{"text": row[0], "label": names[int(row[1])]} for row in rows])
    return splits[0], splits[1]


def _olora(name: str):
    def read(data: Path) -> tuple[Rows, Rows]:
        splits = []
        for split in ("train", "test"):
            path = data / "olora_cl_benchmark" / f"{name}_{split}.json.gz"
            with gzip.open(path, "rt", encoding="utf-8") as file:
                rows = json.load(file)
            splits.append([{"text": row["sentence"], "label": row["label"]} for row in rows])
        return splits[0], splits[1]

    return read


def _clinc(data: Path) -> tuple[Rows, Rows]:
    raw = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    intents = sorted({label for _, label in raw["train"]})[::15]
    return tuple(  # type: ignore[return-value]
        [{"text": text, "label": label} for text, label in raw[split] if label in intents]
        for split in ("train", "test")
    )


_READERS = {"cola": _cola, "sst2": _sst2, "qqp": _olora("QQP"), "agnews": _olora("agnews"), "clinc": _clinc}


def mixture(data: Path, train: int, test: int, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return training and test rows ``{text, label, task}``, as many of each task.

    Args:
        data: Folder of the raw files.
        train: Training rows per task.
        test: Test rows per task, or all there are if fewer.
        seed: Fixes which rows.
    """
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for task in TASKS:
        for (split, count), rows in zip(
            (("train", train), ("test", test)), _READERS[task](data), strict=True
        ):
            chosen = random.Random(f"{seed} {task} {split}").sample(rows, min(count, len(rows)))
            splits[split] += [
                {"text": f"{task} {row['text']}", "label": f"{task}:{row['label']}", "task": task}
                for row in chosen
            ]
    return splits
