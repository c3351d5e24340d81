"""The task sequences of the comparison, from the raw data folder."""

import csv
import json
from pathlib import Path

from moe_adapt.streams import (
    Instruction,
    InstructionTask,
    TaskStream,
    instruction_stream,
    olora_order,
    olora_task,
)

__all__ = ["SEQUENCES", "build", "intent_task"]

#: Orders of the small sequence: every task is early once and late once.
SMALL = {
    0: ["clinc150", "agnews", "SST-2", "banking77", "dbpedia"],
    1: ["dbpedia", "SST-2", "banking77", "agnews", "clinc150"],
    2: ["SST-2", "banking77", "dbpedia", "clinc150", "agnews"],
}
#: Tasks whose answers look unlike: Good, a topic, a logical relation, True.
LANGUAGE = {0: ["SST-2", "agnews", "CB", "BoolQA"]}
#: Name of a sequence -> its orders.
SEQUENCES = {
    "small": list(SMALL),
    "wide": list(SMALL),
    "mechanisms": list(SMALL),
    "long": [4],
    "language": list(LANGUAGE),
}
INTENTS = 20


def intent_task(data: Path, name: str) -> InstructionTask:
    """Return the first intents of CLINC150 or Banking77 (in alphabetical order) as a task with 20 choices."""
    if name == "clinc150":
        raw = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
        rows = {split: raw[split] for split in ("train", "test")}
    else:
        rows = {}
        for split in ("train", "test"):
            with (data / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
                rows[split] = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    names = sorted({label for _, label in rows["train"]})[:INTENTS]
    choices = tuple(_words(label) for label in names)
    question = "What does the customer want?"
    splits = {
        split: [
            Instruction(f"{question}\n{text.strip()}", _words(label), choices)
            for text, label in found
            if label in names
        ]
        for split, found in rows.items()
    }
    return InstructionTask(name, splits["train"], splits["test"], {"data": name, "intents": INTENTS})


def _words(label: str) -> str:
    return label.replace("_", " ").strip().lower()


def build(sequence: str, order: int, data: Path, train: int, test: int) -> TaskStream:
    """Return a sequence in an order, cut to some samples per task.

    Args:
        sequence: small (wide and mechanisms have the same tasks), long or language.
        order: A key of the sequence's orders.
        data: Folder of the raw files.
        train: Training samples per task.
        test: Test samples per task.
    """
    folder = data / "olora_cl_benchmark"
    if sequence == "long":
        tasks = olora_order(folder, order)
    else:
        tasks = [
            intent_task(data, name) if name in ("clinc150", "banking77") else olora_task(folder, name)
            for name in (LANGUAGE if sequence == "language" else SMALL)[order]
        ]
    return instruction_stream(
        tasks, max_train=train, max_test=test, origin={"sequence": sequence, "order": order}
    )
