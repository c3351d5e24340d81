"""Features of a stream under a frozen encoder, computed once and kept on disk."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from moe_adapt.backbones import Encoder
from moe_adapt.streams import TaskStream
from moe_adapt.streams.arrays import Vectors

__all__ = ["encoded"]


@torch.inference_mode()
def features_of(
    inputs: Any, encoder: Encoder, collate: Any, batch_size: int = 128
) -> tuple[np.ndarray, float]:
    """Return features of every row of a data set [N, d], and seconds per row."""
    start, found = time.perf_counter(), []
    for first in track(range(0, len(inputs), batch_size), description="encoding"):
        rows = range(first, min(first + batch_size, len(inputs)))
        found.append(encoder(collate([inputs[row] for row in rows])))
    return torch.cat(found).numpy(), (time.perf_counter() - start) / len(inputs)


def encoded(stream: TaskStream, encoder: Encoder, folder: Path) -> float:
    """Replace the inputs of `stream` by their features, from `folder` if they are there.

    Returns:
        Seconds that it took to encode one sample.
    """
    words = {**stream.origin, "encoder": encoder.settings(), "name": encoder.name}
    for key in ("increment", "first", "order_seed"):
        words.pop(key, None)
    digest = hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode())
    for split in ("train", "test"):
        data = getattr(stream, split)
        table = getattr(data, "table", None)
        digest.update(str(len(data)).encode() if table is None else table.row.tobytes())
    path = folder / f"{digest.hexdigest()[:16]}.npz"
    if not path.is_file():
        encoder.eval()
        train, seconds = features_of(getattr(stream.train, "plain", stream.train), encoder, stream.collate)
        test, _ = features_of(stream.test, encoder, stream.collate)
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, train=train, test=test, seconds=seconds)
        part.rename(path)
    with np.load(path) as arrays:
        stream.train = Vectors(torch.from_numpy(arrays["train"]))
        stream.test = Vectors(torch.from_numpy(arrays["test"]))
        return float(arrays["seconds"])
