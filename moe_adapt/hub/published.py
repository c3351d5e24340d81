"""Keep a learner as a folder of safetensors and JSON, open it again, push it.

``learner.json`` says what it is, ``learner.safetensors`` holds what it learned; beside them lie the model
card, the run's manifest and ``export.json``. A folder is written under another name, read back, compared
tensor by tensor, and only then renamed. ``learner.json`` carries a hash of itself and one of the tensors, so
that a file that was cut off, changed or swapped is noticed before anything is built.

What a learner consists of, it says itself: see `moe_adapt.hub.publishable.Publishable`.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.files import settle
from moe_adapt.hub.card import About
from moe_adapt.hub.export import EXPORT_FILE, ExportReport
from moe_adapt.hub.folder import folder_size, new_folder, write_json
from moe_adapt.hub.learner_card import make_learner_card
from moe_adapt.hub.load import PICKLED
from moe_adapt.hub.remote import fetch_folder, looks_like_repository, push_folder, repository
from moe_adapt.reading import foreign, read_json, read_tensors

if TYPE_CHECKING:
    from moe_adapt.hub.publishable import Publishable

__all__ = ["LEARNER_FILE", "TENSORS_FILE", "load", "push", "save"]

LEARNER_FILE = "learner.json"
TENSORS_FILE = "learner.safetensors"
FORMAT_VERSION = 1


def save(
    learner: "Publishable", folder: str | Path, *, about: About | None = None, overwrite: bool = False
) -> ExportReport:
    """Write a learner to a folder, whole or not at all.

    Args:
        learner: The learner.
        folder: Where to.
        about: What the card should say beside what the learner knows.
        overwrite: Replace an earlier export in `folder`.

    Raises:
        UserError: If the folder is in use, or something of the learner is neither an array nor JSON.
    """
    target, about = Path(folder), about or About()
    parts, tensors = learner.to_parts()
    content = {"format": FORMAT_VERSION, "kind": learner.published_kind, **parts}
    with new_folder(target, overwrite) as work:
        save_file(tensors, work / TENSORS_FILE)
        content["tensors"] = hashlib.sha256((work / TENSORS_FILE).read_bytes()).hexdigest()
        try:
            write_json(work / LEARNER_FILE, {**content, "hash": content_hash(content)})
        except (TypeError, ValueError) as error:
            raise UserError(f"{type(learner).__name__} cannot be kept as JSON: {error}.") from error
        _, found = _read(work)
        different = [name for name in tensors if not _equal(tensors[name], found[name])]
        if different:
            raise UserError(f"{different[0]!r} does not read back as it was written; try another disk.")
        card = learner.card_parts(content, about.manifest)
        make_learner_card(content, tensors, about, card, target.resolve().name).save(work / "README.md")
        if about.manifest:
            write_json(work / "manifest.json", about.manifest)
        record = {
            "form": "learner",
            "word": "lossless",
            "class": content["class"],
            "bytes": folder_size(work),
        }
        write_json(work / EXPORT_FILE, record)
    values = sum(tensor.numel() for tensor in tensors.values())
    return ExportReport(target, len(tensors), values, folder_size(target), record)


def load(
    address: str | Path,
    *,
    expected: "type[Publishable]",
    backbone: Any = None,
    revision: str | None = None,
    token: str | None = None,
) -> Any:
    """Open what `save` wrote.

    Args:
        address: A folder, or ``user/name`` on the Hub.
        expected: The class that it should be of.
        backbone: The pretrained model that it was trained over, fresh; None builds the one that it names.
        revision: Branch, tag or commit of the repository.
        token: Access token for a private repository.

    Raises:
        UserError: If nothing of this class is there, it is damaged, or it belongs to another backbone.
    """
    if looks_like_repository(str(address)):
        folder = fetch_folder(str(address), revision, token)
    else:
        folder = Path(address)
    content, tensors = _read(folder)
    try:
        if content["kind"] != expected.published_kind:
            raise UserError(
                f"it holds a {content['class']}, not a {expected.__name__} (its kind is {content['kind']!r})."
            )
        return expected.from_parts(content, tensors, backbone)
    except UserError as error:
        raise UserError(f"the learner in {folder} cannot be opened: {error}") from error
    except Exception as error:  # whatever a foreign file makes the constructors trip over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"the learner in {folder} is damaged ({type(error).__name__}: {reason[:200]}); export or "
            "download it again."
        ) from error


def push(
    learner: "Publishable",
    to: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
    about: About | None = None,
) -> str:
    """Write a learner to a temporary folder, push it in one commit, and return the commit's address.

    Args:
        learner: The learner.
        to: ``user/name``, with or without ``hf://``.
        private: Make a new repository private.
        token: Access token.
        message: Commit message.
        about: As for `save`.

    Raises:
        UserError: If the learner cannot be kept, or the Hub refuses.
    """
    name = repository(to)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(learner, Path(scratch) / name.partition("/")[2], about=about).folder
        return push_folder(folder, name, private=private, token=token, message=message)


def content_hash(content: Mapping[str, Any]) -> str:
    """Return the hash of JSON types, whatever the order of their keys."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether both have the same bits (NaN is no exception)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return not one.numel() or torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read both files and check that they are whole and belong together."""
    again = "export or download it again"
    settle(folder)
    path = folder / LEARNER_FILE
    if not path.is_file():
        pickled = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLED]
        if pickled:
            raise UserError(
                f"{folder} holds {pickled[0]}, a pickle, which can run any code when it is read; it is not "
                f"opened: ask for {LEARNER_FILE} and {TENSORS_FILE}."
            )
        raise UserError(f"{folder} holds no learner: it has no {LEARNER_FILE}; give an exported folder.")
    with foreign(path, "JSON of a learner", again):
        content = read_json(path, "JSON of a learner", again)
        whole = content.pop("hash") == content_hash(content)
    if not whole:
        raise UserError(f"{path} was changed or cut off since it was written; {again}.")
    version = content.get("format")
    if type(version) is not int or version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version!r}, this moe_adapt reads up to {FORMAT_VERSION}; "
            "upgrade moe-adapt."
        )
    weights = folder / TENSORS_FILE
    if not weights.is_file():
        raise UserError(f"{folder} has no {TENSORS_FILE}, which holds what was learned; {again}.")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != content.get("tensors"):
        raise UserError(f"{weights} is damaged, or belongs to another {LEARNER_FILE}; {again}.")
    return content, read_tensors(weights, "what a learner learned", again)
