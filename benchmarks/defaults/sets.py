"""Few rows of five data sets: train rows, dev rows to choose a default on, test rows for the table.

Three of texts (20 classes of Banking77, 20 of HWU64, SST-2), one of images (5 classes of Tiny-ImageNet), one
of plain text (Shakespeare's lines). Dev rows are other training rows; test rows come from the set's own test
part, for Shakespeare from its last tenth.
"""

import csv
import json
import os
import random
from pathlib import Path

import numpy as np

__all__ = ["TEXT_SETS", "images", "language", "texts"]

Rows = list[tuple[str, str]]

TRAIN, DEV, TEST = 200, 200, 300
IMAGES = {"train": 15, "dev": 15, "test": 30}
CLASSES = 5
CHARACTERS = {"train": 40_000, "dev": 10_000, "test": 10_000}


def root() -> Path:
    """Return the data folder."""
    return Path(os.environ["MOE_ADAPT_DATA"])


def banking77() -> tuple[Rows, Rows]:
    """Return the training and test rows of Banking77."""
    splits = []
    for name in ("train", "test"):
        with (root() / "banking77" / f"{name}.csv").open(encoding="utf-8") as file:
            splits.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return splits[0], splits[1]


def hwu64() -> tuple[Rows, Rows]:
    """Return the training and test rows of HWU64."""
    folder = root() / "intent_hwu64"
    splits = []
    for name in ("train", "test"):
        lines = (folder / f"{name}.seq.in").read_text(encoding="utf-8").splitlines()
        labels = (folder / f"{name}.label").read_text(encoding="utf-8").splitlines()
        splits.append(list(zip(lines, labels, strict=True)))
    return splits[0], splits[1]


def sst2() -> tuple[Rows, Rows]:
    """Return the training and development rows of SST-2, the latter as test rows."""
    splits = []
    for name in ("train", "dev"):
        lines = (root() / "glue_small" / f"sst2_{name}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = (line.rpartition("\t") for line in lines)
        splits.append([(text, "positive" if label == "1" else "negative") for text, _, label in pairs])
    return splits[0], splits[1]


#: Source and number of classes of each set.
TEXT_SETS = {"banking77": (banking77, 20), "hwu64": (hwu64, 20), "sst2": (sst2, 2)}


def texts(name: str, seed: int, folder: Path) -> dict[str, str]:
    """Write the rows of one seed; return the file of each split."""
    read, classes = TEXT_SETS[name]
    training, testing = read()
    rng = random.Random(seed)
    chosen = set(rng.sample(sorted({label for _, label in training}), classes))
    training = [row for row in training if row[1] in chosen]
    testing = [row for row in testing if row[1] in chosen]
    rng.shuffle(training)
    rng.shuffle(testing)
    first = {label: row for row in reversed(training) for label in [row[1]]}  # every class has a training row
    once = set(first.values())
    rest = [row for row in training if row not in once]
    pool = [*first.values(), *rest]
    parts = {"train": pool[:TRAIN], "dev": pool[TRAIN : TRAIN + DEV], "test": testing[:TEST]}
    files = {}
    for split, rows in parts.items():
        files[split] = str(folder / f"{split}.jsonl")
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        Path(files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def images(seed: int, folder: Path) -> dict[str, str]:
    """Write packed images of ten classes of one seed; return the file of each split."""
    rng = np.random.default_rng(seed)
    classes = np.sort(rng.choice(200, CLASSES, replace=False))
    files = {}
    for source, splits in (("train_100_per_class", ("train", "dev")), ("val_50_per_class", ("test",))):
        with np.load(root() / "tiny-imagenet-200" / f"{source}.npz") as packed:
            arrays = dict(packed)
        orders = [rng.permutation(np.flatnonzero(arrays["label"] == label)) for label in classes]
        start = 0
        for split in splits:
            rows = np.concatenate([order[start : start + IMAGES[split]] for order in orders])
            start += IMAGES[split]
            files[split] = str(folder / f"{split}.npz")
            _pack(arrays, rows, classes, Path(files[split]))
    return files


def _pack(arrays: dict[str, np.ndarray], rows: np.ndarray, classes: np.ndarray, path: Path) -> None:
    starts, ends = arrays["offset"][rows], arrays["offset"][rows + 1]
    np.savez(
        path,
        jpeg=np.concatenate([arrays["jpeg"][a:b] for a, b in zip(starts, ends, strict=True)]),
        offset=np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        label=np.searchsorted(classes, arrays["label"][rows]),
        name=arrays["name"][classes],
    )


def language(seed: int, folder: Path) -> dict[str, str]:
    """Write passages of Shakespeare of one seed; return the file of each split."""
    text = (root() / "lm_text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tenth = len(text) // 10
    parts = {"train": text[: 8 * tenth], "dev": text[8 * tenth : 9 * tenth], "test": text[9 * tenth :]}
    rng = random.Random(seed)
    files = {}
    for split, part in parts.items():
        start = rng.randrange(len(part) - CHARACTERS[split])
        files[split] = str(folder / f"{split}.txt")
        Path(files[split]).write_text(part[start : start + CHARACTERS[split]], encoding="utf-8")
    return files
