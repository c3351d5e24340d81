"""Open what was trained, to use it: the folder of a run, an exported adapter, or one on the Hub.

No training data is read. Class names, lengths, templates and the tokenizer come from the checkpoint or from
``answering.json`` beside the adapter; the base model from its name, or from `base` where it was a folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moe_adapt.data.packages import local_model
from moe_adapt.errors import UserError
from moe_adapt.hub.answering import read_answering
from moe_adapt.hub.head import HEAD_FILE, load_head
from moe_adapt.hub.load import load_adapter
from moe_adapt.hub.remote import fetch_folder, looks_like_repository
from moe_adapt.runs.folder import CONFIG_FILE
from moe_adapt.runs.rebuild import load_module, read_run_config
from moe_adapt.serving.classify import Classifying
from moe_adapt.serving.generate import Generating
from moe_adapt.training import modules
from moe_adapt.training.checkpoint import KEY, checkpoint_path, read_checkpoint

__all__ = ["adapter_folder", "base_of", "open_adapters", "open_model"]

#: Classes of modules that an export may name.
CLASSES = ("CausalLM", "ImageClassifier", "SequenceClassifier")


def open_model(
    source: str | Path, base: str | None = None, checkpoint: str = "best", name: str = "default"
) -> Classifying | Generating:
    """Open a run or an adapter, on the CPU or the first accelerator.

    Args:
        source: Folder of a run, folder of an exported adapter, or ``user/name`` on the Hub.
        base: Folder or name of the base model, where the adapter does not say where it is.
        checkpoint: ``best``, ``last`` or a path, for the folder of a run.
        name: What the adapter is called among others (`Classifying.add`, `Generating.add`).

    Raises:
        UserError: If it cannot be opened, or its base is not here.
    """
    if (Path(source) / CONFIG_FILE).is_file():
        model, answering = _of_run(Path(source), checkpoint)
        tokenizer = answering.get("tokenizer")
    else:
        folder = adapter_folder(source)
        answering = read_answering(folder)
        bare = base_of(answering, base)
        alone = (folder / HEAD_FILE).is_file()
        model = load_head(bare, folder) if alone else load_adapter(bare, folder, adapter_name=name)
        tokenizer = (
            str(folder) if (folder / "tokenizer_config.json").is_file() else answering.get("tokenizer")
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model = model.to(device) if device is not None else model
    kind = Generating if answering["task"] == "text-generation" else Classifying
    return kind(model.eval(), answering, None if tokenizer is None else local_model(tokenizer), name)


def open_adapters(named: Mapping[str, str], base: str | None = None) -> Classifying | Generating:
    """Open several exported adapters over one base; rows of one batch may use different ones.

    Args:
        named: Folder or repository of each by the name that it is asked for by.
        base: Folder or name of the base model, where the adapters do not say where it is.

    Raises:
        UserError: If one cannot be opened, or their bases, tasks or numbers of classes differ.
    """
    folders = {name: adapter_folder(source) for name, source in named.items()}
    for folder in folders.values():
        if (folder / CONFIG_FILE).is_file():
            raise UserError(
                f"{folder} is a run: several are served together once `moe-adapt export` wrote them."
            )
        if (folder / HEAD_FILE).is_file():
            raise UserError(f"{folder} is a head without an adapter, which is served by itself.")
    (first, source), *others = folders.items()
    model = open_model(source, base, name=first)
    own = read_answering(source)
    for name, folder in others:
        answering = read_answering(folder)
        for key in ("task", "module", "base", "max_length", "chat_template"):
            if answering.get(key) != own.get(key):
                raise UserError(
                    f"{name} and {first} cannot share a server: {key} is {answering.get(key)!r} and "
                    f"{own.get(key)!r}; serve them apart."
                )
        model.add(name, folder, answering)
    return model


def adapter_folder(source: str | Path) -> Path:
    """Return the folder of an exported adapter, fetched from the Hub if it is a repository.

    Raises:
        UserError: If there is none.
    """
    folder = fetch_folder(str(source), None) if looks_like_repository(str(source)) else Path(source)
    if not folder.is_dir():
        raise UserError(
            f"there is no run or adapter {source}: give a folder that `moe-adapt fit` or "
            f"`moe-adapt export` wrote."
        )
    return folder


def base_of(answering: Mapping[str, Any], base: str | None) -> Any:
    """Build the base model of an adapter.

    Args:
        answering: What ``answering.json`` holds.
        base: Folder or name to take instead of the one in it.

    Raises:
        UserError: If nothing says where the base is.
    """
    arguments = dict(answering["base"])
    if base is not None:
        arguments["backbone"] = base
    lost = [key for key, value in arguments.items() if str(value).startswith("PATH_OF/")]
    if lost:
        raise UserError(
            f"the adapter's base model was the folder {str(arguments[lost[0]])[8:]!r} on the "
            f"machine that trained "
            "it: say where it is here with --base FOLDER."
        )
    if answering["module"] not in CLASSES:
        raise UserError(f"the adapter names the unknown module {answering['module']!r}; upgrade moe-adapt.")
    return getattr(modules, answering["module"]).base_model(**arguments)


def _of_run(run: Path, checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """Return model and answering of a run; a run of an earlier release has them in its configuration."""
    stored = read_checkpoint(checkpoint_path(run, checkpoint))[KEY].get("answering") or {}
    module: Any = load_module(run, checkpoint)
    if not stored:
        stored = _from_config(read_run_config(run), module)
    return module.model, {**stored, "module": type(module).__name__}


def _from_config(config: Mapping[str, Any], module: Any) -> dict[str, Any]:
    data = dict((config.get("data") or {}).get("init_args") or {})
    tokenizer = data.get("tokenizer") or module.name
    if hasattr(module, "max_new_tokens"):
        kept = {name: data.get(name) for name in ("prompt", "response", "chat", "system", "max_length")}
        return {"task": "text-generation", "tokenizer": tokenizer, **kept}
    names = data.get("class_names") or [str(number) for number in range(module.num_classes)]
    common = {"class_names": names, "label_column": data.get("label_column", "label")}
    if "image_size" in data:
        keys = ("image_size", "crop_fraction", "mean", "std", "image_column")
        return {"task": "image-classification", **common, **{key: data[key] for key in keys if key in data}}
    columns = [data.get("text_column", "text"), data.get("text_pair_column")]
    return {
        "task": "text-classification",
        **common,
        "text_columns": [column for column in columns if column],
        "max_length": data.get("max_length", 128),
        "tokenizer": tokenizer,
    }
