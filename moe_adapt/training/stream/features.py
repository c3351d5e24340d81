"""Compute the features of a stream once, for learners whose backbone is frozen.

Every forward of a frozen encoder after the first gives the same features, so a curve over 300 tasks costs one
pass over the images instead of 300. What is computed are features of samples without augmentation; results
say so. The files are named by a hash of the weights, the stream and the content of all rows, so that nothing
stale is read.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.hub.fingerprint import fingerprint
from moe_adapt.learners import Learner
from moe_adapt.reading import foreign
from moe_adapt.streams import Examples, TaskStream
from moe_adapt.streams.arrays import Vectors
from moe_adapt.training.stream.evaluate import loader, move
from moe_adapt.training.stream.files import write_file

__all__ = ["cached_stream", "encode_stream"]

#: Images of each split that are decoded for the name of the files; of the others the encoded bytes count.
PROBES = 16


def cached_stream(
    learner: Learner,
    stream: TaskStream,
    folder: Path | None,
    batch_size: int,
    num_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TaskStream, dict[str, Any]]:
    """Return `stream` with the features of the learner's encoder in place of the inputs, and what it cost.

    Args:
        learner: The learner; its encoder must be frozen and without an adapter.
        stream: The stream.
        folder: Where features are kept; None keeps none.
        batch_size: Samples per forward.
        num_workers: Worker processes of the loader.
        progress: Called with the number of encoded samples and their total.

    Raises:
        UserError: If the learner trains or adapts its encoder.
    """
    encoder = learner.backbone
    if not isinstance(encoder, Encoder):
        raise UserError(f"{type(learner).__name__} has no encoder whose features could be kept.")
    if encoder.adapted or any(parameter.requires_grad for parameter in encoder.parameters()):
        raise UserError(
            f"{type(learner).__name__} trains its encoder, so features change from task to task: set "
            "cache_features to false."
        )
    start = time.perf_counter()
    key = _key(encoder, stream)
    path = None if folder is None else folder / f"features-{key}.npz"
    if path is not None and path.is_file():
        with foreign(path, "kept features", "delete it, and it is made again"), np.load(path) as file:
            parts = [torch.from_numpy(file[split]) for split in ("train", "test")]
            rows = [len(stream.train), len(stream.test)]
            if [len(part) for part in parts] != rows or any(part.ndim != 2 for part in parts):
                raise ValueError("it has other rows than the stream")
            if not all(part.is_floating_point() and bool(part.isfinite().all()) for part in parts):
                raise ValueError("a feature is not finite")
        forwards = 0
    else:
        parts = list(encode_stream(encoder, stream, learner.device, batch_size, num_workers, progress))
        forwards = sum(map(len, parts))
        if path is not None:
            train, test = (part.numpy() for part in parts)
            write_file(path, lambda file: np.savez(file, train=train, test=test))
    encoded = TaskStream(
        stream.scenario,
        Vectors(parts[0]),
        Vectors(parts[1]),
        stream.train_rows,
        stream.test_rows,
        stream.train_labels,
        stream.test_labels,
        stream.class_names,
        stream.task_names,
        origin=stream.origin,
    )
    cost = {"key": key, "forwards": forwards, "seconds": time.perf_counter() - start}
    return encoded, {**cost, "bytes": sum(part.nbytes for part in parts)}


@torch.inference_mode()
def encode_stream(
    encoder: Encoder,
    stream: TaskStream,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """Return the features of all training and all test rows, each [N, d] float32 on the CPU.

    Args:
        encoder: The encoder.
        stream: The stream.
        device: Where the encoder is.
        batch_size: Samples per forward.
        num_workers: Worker processes of the loader.
        progress: Called with the number of encoded samples and their total.
    """
    encoder.eval()
    splits = [(getattr(data, "plain", data), len(data)) for data in (stream.train, stream.test)]
    total, done, found = sum(length for _, length in splits), 0, []
    for data, length in splits:
        parts = []
        examples = Examples(data, np.arange(length), None)
        for batch in loader(examples, batch_size, stream.collate, num_workers):
            parts.append(encoder(move(batch, device)).float().cpu())
            done += len(parts[-1])
            progress(done, total)
        found.append(torch.cat(parts).clone())
    return found[0], found[1]


def _key(encoder: Encoder, stream: TaskStream) -> str:
    """Return a hash of weights, stream and the content of every row; of images, of their files.

    What a transform makes of images is seen on some of them.
    """
    digest = hashlib.sha256(f"{fingerprint(encoder)} {encoder.settings()} {stream.fingerprint()}".encode())
    for data in (stream.train, stream.test):
        plain = getattr(data, "plain", data)
        raw = getattr(plain, "raw", None)
        probes = set(np.linspace(0, len(plain) - 1, PROBES).astype(int).tolist())
        for row in range(len(plain)):
            if raw is not None:
                digest.update(hashlib.sha256(raw(row)).digest())
            if raw is None or row in probes:
                for name, value in sorted(plain[row].items()):
                    array = np.asarray(value)
                    digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]
