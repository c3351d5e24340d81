"""Images for the recipes, packed: the first classes of Tiny-ImageNet, and Omniglot's characters.

The packed form holds all JPEG bytes in one array: image ``i`` is ``jpeg[offset[i]:offset[i + 1]]``.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from moe_adapt.errors import UserError

__all__ = ["omniglot", "tiny_imagenet"]

_FILES = {"train": "train_100_per_class.npz", "validation": "val_50_per_class.npz"}


def subset(packed: dict[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """Keep the images of the classes ``0 .. classes - 1``, in the order of the file.

    Args:
        packed: Arrays jpeg [bytes], offset [n + 1], label [n], wnid [C], name [C].
        classes: How many classes to keep.

    Raises:
        UserError: If there are fewer classes.
    """
    total = len(packed["name"])
    if not 1 <= classes <= total:
        raise UserError(f"cannot keep {classes} classes: the file has {total}; give 1 to {total}.")
    rows = np.flatnonzero(packed["label"] < classes)
    start, stop = packed["offset"][rows], packed["offset"][rows + 1]
    jpeg = np.concatenate([packed["jpeg"][a:b] for a, b in zip(start, stop, strict=True)])
    offset = np.concatenate([[0], np.cumsum(stop - start)]).astype(np.int64)
    names = {key: packed[key][:classes] for key in ("wnid", "name")}
    return {"jpeg": jpeg, "offset": offset, "label": packed["label"][rows], **names}


def tiny_imagenet(data: Path, folder: Path, classes: int) -> dict[str, int]:
    """Write ``train.npz`` and ``validation.npz`` with `classes` classes; return the image counts."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, name in _FILES.items():
        with np.load(data / "tiny-imagenet-200" / name) as arrays:
            kept = subset(dict(arrays), classes)
        np.savez(folder / f"{split}.npz", **kept)
        counts[split] = len(kept["label"])
    return counts


def png(ink: np.ndarray) -> bytes:
    """Return a drawing [105, 105] of 0 and 1 as a PNG file, black on white."""
    file = io.BytesIO()
    Image.fromarray((255 * (1 - ink)).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def omniglot(data: Path, folder: Path, test: int = 5) -> dict[str, int]:
    """Write Omniglot's 1,623 characters, 20 drawings each, as ``train.npz`` and ``validation.npz``.

    The last `test` drawers of a character are for testing. Return the image counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(data / "omniglot" / "omniglot_105_packed.npz") as packed:
        ink = np.unpackbits(packed["ink"], axis=1)[:, : 105 * 105].reshape(-1, 105, 105)
        labels = packed["label"].astype(np.int64)
    names = np.array([f"character {c:04d}" for c in range(labels.max() + 1)])
    rank = np.zeros(len(labels), dtype=np.int64)
    for c in range(len(names)):
        rows = np.flatnonzero(labels == c)
        rank[rows] = np.arange(len(rows))
    counts = {}
    for split, chosen in (("train", rank < 20 - test), ("validation", rank >= 20 - test)):
        files = [png(drawing) for drawing in ink[chosen]]
        offset = np.concatenate([[0], np.cumsum([len(file) for file in files])]).astype(np.int64)
        jpeg = np.frombuffer(b"".join(files), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", jpeg=jpeg, offset=offset, label=labels[chosen], name=names)
        counts[split] = len(files)
    return counts
