"""Open an adapter folder: say clearly what is wrong with it, and leave no tensor at its random initial value.

PEFT only warns when tensors are missing from a file, and answers ``KeyError: 'ROUTED_LORA'`` where this
package is not imported. `load_adapter` checks the folder first, loads through PEFT, and then compares every
tensor with the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.files import settle, write_file
from moe_adapt.hub.remote import fetch_folder, looks_like_repository
from moe_adapt.hub.soundness import check_layers
from moe_adapt.reading import foreign, read_json, read_torch, tensor_shapes
from moe_adapt.reading import read_tensors as read_file
from moe_adapt.tuner.config import FORMAT_VERSION
from moe_adapt.tuner.peft_plugin import PEFT_TYPE, PREFIX

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "check_adapter_folder",
    "check_sum",
    "compare_tensors",
    "convert_pickle",
    "file_hash",
    "load_adapter",
    "read_tensors",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_AGAIN = "export or download the adapter again"

#: Endings of files that are pickles inside.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def check_adapter_folder(path: str | Path) -> dict[str, Any]:
    """Check that a folder holds a routed-LoRA adapter that this version reads, and return its configuration.

    Args:
        path: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        UserError: If the folder or a file is missing or damaged, if the adapter is of another kind, or if a
            newer version wrote it.
    """
    folder = Path(path)
    settle(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder that `moe-adapt export` wrote.")
    config = _read_config(folder)
    kind = config.get("peft_type")
    if kind != PEFT_TYPE:
        raise UserError(
            f"{folder} holds an adapter of type {kind!r}, {PEFT_TYPE!r} is needed; load it with PEFT itself."
        )
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {version!r}, this moe_adapt reads up to {FORMAT_VERSION}; "
            "upgrade moe-adapt."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(folder, shapes_only=True).items()}
    if not any(PREFIX in name for name in shapes):
        raise UserError(
            f"{folder / WEIGHTS_FILE} holds {len(shapes)} tensors and none of them is an expert; "
            "export it again."
        )
    check_layers(config, shapes, folder)
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}, so it is not an adapter; give an exported folder.")
    return read_json(path, "an adapter's configuration", _AGAIN)


def read_tensors(folder: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    """Read the adapter's tensors onto the CPU.

    Args:
        folder: Adapter folder.
        shapes_only: Read the header alone; the tensors then have no values (meta device).

    Raises:
        UserError: If the file is missing, cut off or not in the safetensors format.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLED]
        if pickled:
            raise UserError(
                f"{folder} has its weights in {pickled[0]} only, a pickle, which can run any code when it is "
                "read; it is not opened: ask for safetensors, or convert it (`convert_pickle`)."
            )
        raise UserError(f"{folder} has no {WEIGHTS_FILE}, the experts' weights; export or download it again.")
    if shapes_only:
        shapes, _ = tensor_shapes(path, "an adapter's weights", _AGAIN)
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    check_sum(path)
    tensors = read_file(path, "an adapter's weights", _AGAIN)
    broken = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if broken:
        raise UserError(
            f"{path} holds values that are not finite ({len(broken)} tensors, such as {broken[0]!r}); "
            "the adapter is "
            "broken: train or download it again."
        )
    return tensors


def check_sum(path: Path) -> None:
    """Compare the weights with the hash that ``export.json`` beside them has, if it has one.

    Raises:
        UserError: If they differ.
    """
    record = path.with_name("export.json")
    said = (
        read_json(record, "what an export says of itself", _AGAIN).get("sha256") if record.is_file() else None
    )
    if said is not None and said != file_hash(path):
        raise UserError(
            f"{path} is damaged, or belongs to another export: its hash is not that of {record.name}; "
            f"{_AGAIN}."
        )


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert_pickle(folder: str | Path, *, trust: bool = False) -> None:
    """Write the weights of an adapter that come as a pickle again as safetensors, beside the pickle.

    Args:
        folder: Folder with ``adapter_model.bin``.
        trust: That you know where the file comes from. Even then nothing but tensors is read from it.

    Raises:
        UserError: Without `trust`, or if the file is missing or holds anything else than tensors.
    """
    path = Path(folder) / "adapter_model.bin"
    if not trust:
        raise UserError(f"{path} is a pickle; pass trust=True if you know where it comes from.")
    if not path.is_file():
        raise UserError(f"there is no {path}.")
    tensors = read_torch(path, "a file of tensors alone", _AGAIN)
    with foreign(path, "a file of tensors alone", _AGAIN):
        weights = path.with_name(WEIGHTS_FILE)
        write_file(weights, save({name: t.clone() for name, t in tensors.items()}))
        record = path.with_name("export.json")
        if record.is_file():
            content = read_json(record) | {"sha256": file_hash(weights)}
            write_file(record, json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_adapter(
    base: nn.Module,
    path: str | Path,
    adapter_name: str = "default",
    is_trainable: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> PeftModel:
    """Put the adapter in a folder or repository on a base model, and check that every tensor arrived.

    Args:
        base: The model that the adapter was trained on.
        path: Adapter folder, or ``user/name`` on the Hub.
        adapter_name: Name under which to load it.
        is_trainable: Whether to go on training it.
        revision: Branch, tag or commit of the repository.
        token: Access token for a private repository; None takes the one of ``hf auth login``.

    Raises:
        UserError: If the repository cannot be fetched, the folder is not sound (`check_adapter_folder`) or
            does not fit the base.
    """
    if looks_like_repository(str(path)):
        path = fetch_folder(str(path), revision, token)
    check_adapter_folder(path)
    check_sum(Path(path) / WEIGHTS_FILE)
    try:
        model = PeftModel.from_pretrained(base, path, adapter_name=adapter_name, is_trainable=is_trainable)
    except Exception as error:  # a foreign configuration can fail anywhere in PEFT
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
        raise UserError(
            f"the adapter in {path} does not fit this {type(base).__name__} ({reason}); "
            "build the base model that its README.md names."
        ) from error
    compare_tensors(model, adapter_name, Path(path))
    return model


def compare_tensors(model: PeftModel, adapter_name: str, folder: Path) -> dict[str, Tensor]:
    """Compare the adapter in a model with the file in a folder and return the file's tensors.

    Args:
        model: Model that carries the adapter.
        adapter_name: The adapter's name in the model.
        folder: Adapter folder.

    Raises:
        UserError: If a tensor is missing, unexpected, different or not finite.
    """
    stored = read_tensors(folder)
    live = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    unexpected = {name for name in stored.keys() - live.keys() if PREFIX in name}
    different = {
        name
        for name in stored.keys() & live.keys()
        if not torch.equal(stored[name].to(live[name].dtype), live[name].cpu())
    }
    problems = [
        f"{len(names)} {word} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for word, names in (
            ("missing", live.keys() - stored.keys()),
            ("unexpected", unexpected),
            ("different", different),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"the tensors in {folder} do not match the model: {'; '.join(problems)}; "
            "build the base model that its README.md names, or export the adapter again."
        )
    return stored
