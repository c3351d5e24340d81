"""What a trained model needs to answer new rows: class names, lengths, templates; never training data.

The data module says it (`SeededDataModule.answering`), every checkpoint keeps it, and every export has it as
``answering.json`` beside the adapter, with the tokenizer's files. ``id2label`` and ``label2id`` are there for
readers who know transformers' configurations.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.hub.folder import write_json
from moe_adapt.reading import read_json

__all__ = ["ANSWERING_FILE", "TASKS", "base_arguments", "read_answering", "write_answering"]

ANSWERING_FILE = "answering.json"
FORMAT_VERSION = 1

#: What a model answers.
TASKS = ("text-classification", "image-classification", "text-generation")


def base_arguments(module_class: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that build the base model of a training module, without a path of this machine.

    Args:
        module_class: A class with the class method `base_model`.
        arguments: Arguments of its constructor.
    """
    known = inspect.signature(module_class.base_model).parameters
    found = {
        name: arguments.get(name, parameter.default)
        for name, parameter in known.items()
        if arguments.get(name, parameter.default) is not inspect.Parameter.empty
    }
    return {name: _without_folder(value) for name, value in found.items()}


def _without_folder(value: Any) -> Any:
    """Return a value; of a path only its last part, with a mark that it has to be given again."""
    if isinstance(value, str) and Path(value).exists():
        return f"PATH_OF/{Path(value).name}"
    return value


def write_answering(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``answering.json`` into an adapter's folder.

    Args:
        folder: The folder.
        content: What a checkpoint keeps under ``answering``, with ``module`` and ``base``.
    """
    names = content.get("class_names")
    labels = (
        {}
        if names is None
        else {
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
        }
    )
    write_json(folder / ANSWERING_FILE, {"format_version": FORMAT_VERSION, **content, **labels})


def read_answering(folder: Path) -> dict[str, Any]:
    """Read ``answering.json`` of an adapter's folder.

    Raises:
        UserError: If there is none, it is damaged, or a newer version wrote it.
    """
    path = folder / ANSWERING_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} has no {ANSWERING_FILE}, which says how to put rows to the model: export the run "
            "again, or give the run's folder."
        )
    content = read_json(path, "the record of an adapter's answers", "export the run again")
    version, task = content.get("format_version"), content.get("task")
    if not isinstance(version, int) or version > FORMAT_VERSION or task not in TASKS:
        raise UserError(f"{path} was written by another version of moe-adapt; upgrade it.")
    return content
