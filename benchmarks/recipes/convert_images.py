"""Tiny-ImageNet for the recipes: the first classes of the packed file, still packed.

The packed form holds all JPEG bytes in one array: image ``i`` is ``jpeg[offset[i]:offset[i + 1]]``.
"""

from pathlib import Path

import numpy as np

from moe_adapt.errors import UserError

__all__ = ["tiny_imagenet"]

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
