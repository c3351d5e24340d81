"""Checkpoints that hold the adapter and the head, not the frozen base.

`fill` and `verify` are called by the Lightning module when a checkpoint is written and read. What is written:

* ``state_dict``: trainable tensors and every tensor of ours (frozen experts, statistics);
* ``moe_adapt``: the settings that shaped the module, the tuner's configuration, a fingerprint of the base,
  the run seed and the states of the random generators.

Reading verifies all of it, because Lightning itself has to load such a file with ``strict=False``: a missing
or unexpected tensor, another base or another configuration is an error that says what differs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.files import write_file
from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.reading import read_torch
from moe_adapt.training.randomness import rng_state
from moe_adapt.tuner import RoutedLoraConfig

__all__ = [
    "AtomicCheckpointIO",
    "Origin",
    "checkpoint_path",
    "differences",
    "fill",
    "load_checkpoint",
    "read_checkpoint",
    "verify",
]

FORMAT_VERSION = 1
KEY = "moe_adapt"
Checkpoint: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, and what a module must agree with to load it.

    Attributes:
        identity: Settings that shape the module, as JSON types.
        training: Settings that shape its training, as JSON types; compared only when training goes on.
        backbone: Name of the base model, for messages.
        base: Fingerprint of the base model.
        seed: Seed of the run.
    """

    identity: dict[str, Any]
    training: dict[str, Any]
    backbone: str
    base: str
    seed: int


def fill(
    checkpoint: Checkpoint, module: nn.Module, origin: Origin, answering: Mapping[str, Any] | None = None
) -> None:
    """Reduce `checkpoint`, which Lightning is about to write, to `module`'s adapter, and say what it is.

    Args:
        checkpoint: The checkpoint.
        module: The module.
        origin: Where it comes from.
        answering: How new rows are put to the model (`moe_adapt.hub.answering`).
    """
    names = adapter_state(module).keys()
    checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in names}
    checkpoint[KEY] = {"format_version": FORMAT_VERSION, **asdict(origin), "rng": rng_state()}
    if answering:
        checkpoint[KEY]["answering"] = dict(answering)


def verify(checkpoint: Checkpoint, module: nn.Module, origin: Origin, resuming: bool) -> None:
    """Check that `checkpoint`, which Lightning has read, belongs to `module`.

    Args:
        checkpoint: The checkpoint.
        module: The module that is about to load it.
        origin: What the module would write into a checkpoint.
        resuming: Whether training goes on from here, so that the training settings have to agree too.

    Raises:
        UserError: If it was written by something else, by another configuration, over another base, or if
            tensors are missing, unexpected or of another shape.
    """
    record = checkpoint.get(KEY)
    if record is None:
        raise UserError(
            "this checkpoint was not written by moe_adapt; give one from a run folder's checkpoints/."
        )
    if record["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"this checkpoint has format version {record['format_version']}, this moe_adapt reads up to "
            f"{FORMAT_VERSION}: upgrade moe_adapt."
        )
    found = differences(_with_new_settings(record["identity"], origin.identity), origin.identity)
    if resuming:
        found += differences(record["training"], origin.training)
    if found:
        raise UserError(
            f"this checkpoint comes from another configuration: {'; '.join(found)}. Use the "
            "configuration that wrote it, or start a new run."
        )
    if record["base"] != origin.base:
        raise UserError(
            f"this checkpoint was trained over {record['backbone']!r} (weights {record['base']}), but the "
            f"base at hand is {origin.backbone!r} (weights {origin.base}); use the same base model."
        )
    _verify_tensors(checkpoint["state_dict"], adapter_state(module))


def _with_new_settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return an identity with the tuner's settings that its release did not have, at their defaults."""
    tuner = old.get("tuner")
    if not tuner:
        return old
    plain = RoutedLoraConfig()  # its parts are those of the default method
    defaults = {field.name: (field.default, getattr(plain, field.name)) for field in fields(RoutedLoraConfig)}
    added = {name: value for name, value in new.get("tuner", {}).items() if name not in tuner}
    return {**old, "tuner": tuner | {n: v for n, v in added.items() if v in defaults.get(n, ())}}


def _verify_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    problems = [
        f"{word} {len(names)} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for word, names in (
            ("missing", expected.keys() - found.keys()),
            ("unexpected", found.keys() - expected.keys()),
            (
                "of another shape",
                {n for n in expected.keys() & found.keys() if expected[n].shape != found[n].shape},
            ),
        )
        if names
    ]
    if problems:
        raise UserError(f"the checkpoint's tensors do not fit the adapter: {'; '.join(problems)}.")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return where two JSON values differ, as sentences; `path` is what the first level is called."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            d for key in keys for d in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path} was {old!r}, is {new!r}"]


def checkpoint_path(run: str | Path, which: str = "best") -> Path:
    """Return a checkpoint of a run folder.

    Args:
        run: The run folder.
        which: ``"last"``; ``"best"``, the best by validation and the last one of a run that never validated;
            or the path of a checkpoint.

    Raises:
        UserError: If there is no such file.
    """
    folder = Path(run) / "checkpoints"
    names = {"best": ["best.ckpt", "last.ckpt"], "last": ["last.ckpt"]}
    candidates: Iterable[Path] = [folder / n for n in names[which]] if which in names else [Path(which)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"no checkpoint {which!r} in {run}; expected {' or '.join(str(c) for c in candidates)} "
        "(a run writes its first one after some steps)."
    )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, without unpickling anything but tensors and plain values.

    Raises:
        UserError: If the file does not exist or cannot be read.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint at {path}; expected a .ckpt file of a run folder.")
    checkpoint = read_torch(path, "a checkpoint")
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state_dict; expected a checkpoint written by moe_adapt.")
    return checkpoint


def load_checkpoint(module: Any, path: str | Path) -> Checkpoint:
    """Load the adapter at `path` into a `LightningModule`, verified; return the whole checkpoint."""
    checkpoint = read_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its final name, flush it to the disk, then rename: never half a file.

    Lightning's own writer goes through the system's temporary folder, which is a copy when that is another
    disk.
    """

    def save_checkpoint(self, checkpoint: Checkpoint, path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`."""
        write_file(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Checkpoint:
        """Read the checkpoint at `path` with `read_checkpoint`."""
        return read_checkpoint(path)
