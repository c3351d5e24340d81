"""Write an adapter as a folder that PEFT loads: weights, configuration, model card and manifest.

The folder is written under a temporary name beside the target, opened again and compared with the model in
memory, and only then renamed, so a target never holds half an export. Nothing is sent anywhere.
"""

import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from moe_adapt.errors import UserError
from moe_adapt.hub.card import hub_id, make_card
from moe_adapt.hub.load import CONFIG_FILE, check_adapter_folder, compare_tensors, read_tensors
from moe_adapt.training.checkpoint import checkpoint_path, read_checkpoint
from moe_adapt.training.cli.runs import load_module, read_run_config
from moe_adapt.tuner.peft_plugin import PEFT_TYPE

__all__ = ["ExportReport", "base_code", "export_model", "export_run"]

_CHECK = "export_check"

_TASKS = {
    "CausalLM": "text-generation",
    "ImageClassifier": "image-classification",
    "SequenceClassifier": "text-classification",
}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: The adapter's folder.
        tensors: Number of tensors, all of them compared after writing.
        parameters: Number of values in them.
        size: Bytes of the whole folder.
    """

    folder: Path
    tensors: int
    parameters: int
    size: int

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.tensors} tensors, {self.parameters:,} values, {self.size / 1e6:.2f} MB, "
            "read back and equal"
        )


def export_model(
    peft_model: PeftModel,
    to: str | Path,
    *,
    metrics: Mapping[str, float] | None = None,
    manifest: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    base_model: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
    load_code: str | None = None,
) -> ExportReport:
    """Write the active adapter of a model.

    Args:
        peft_model: The model, with one active routed-LoRA adapter.
        to: Folder to write.
        metrics: Results for the card.
        manifest: The run's manifest, for the card and ``manifest.json``.
        overwrite: Replace an earlier export in `to`.
        base_model: Id of the base model on the Hub, where the model does not know it.
        task: Task in the Hub's words, such as text-classification.
        dataset: What the metrics were measured on.
        load_code: Python for the card that builds the base model as `base`.

    Raises:
        UserError: If the target is in use, the adapter is of another kind, or what was written does not read
            back.
    """
    target = Path(to)
    _check_target(target, overwrite)
    adapter = _active_adapter(peft_model)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    work.mkdir()
    try:
        _save_adapter(peft_model, adapter, work)
        config = check_adapter_folder(work)
        tensors = _read_back(peft_model, adapter, work)
        card = make_card(
            config,
            tensors,
            title=target.resolve().name,
            base_model=base_model or peft_model.peft_config[adapter].base_model_name_or_path,
            task=task,
            dataset=dataset,
            metrics=metrics,
            manifest=manifest,
            load_code=load_code,
        )
        card.save(work / "README.md")
        if manifest:
            _write_json(work / "manifest.json", manifest)
        _move_into_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ExportReport(
        folder=target,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        size=sum(file.stat().st_size for file in target.iterdir()),
    )


def export_run(
    run: str | Path, to: str | Path, *, checkpoint: str = "best", overwrite: bool = False
) -> ExportReport:
    """Write the adapter of a run folder.

    Args:
        run: Folder that ``moe-adapt fit`` wrote.
        to: Folder to write.
        checkpoint: ``best``, ``last`` or the path of a checkpoint.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If the run cannot be rebuilt, trained no adapter, or `to` is in use.
    """
    _check_target(Path(to), overwrite)
    run = Path(run)
    config = read_run_config(run)
    module = load_module(run, checkpoint)
    if not isinstance(module.model, PeftModel):
        raise UserError(f"the run {run} trained a head only; an export needs a run with a tuner.")
    manifest = _read_manifest(run)
    chosen = checkpoint_path(run, checkpoint)
    return export_model(
        module.model,
        to,
        metrics=_checkpoint_metrics(chosen, manifest),
        manifest=manifest,
        overwrite=overwrite,
        task=_TASKS.get(type(module).__name__),
        dataset=_dataset_name(config),
        load_code=base_code(type(module), config["model"].get("init_args") or {}),
    )


def base_code(module_class: type, arguments: Mapping[str, Any]) -> str:
    """Return Python that builds the base model of a training module, without paths of this machine.

    Args:
        module_class: A class with the class method `base_model`.
        arguments: Arguments of its constructor; those that `base_model` knows are written out.
    """
    known = inspect.signature(module_class.base_model).parameters  # type: ignore[attr-defined]
    written = []
    for name, parameter in known.items():
        value = arguments.get(name, parameter.default)
        if value is parameter.empty or value == parameter.default:
            continue
        if isinstance(value, str) and Path(value).exists():
            value = f"PATH_OF/{Path(value).name}"
        written.append(f"{name}={value!r}")
    name = module_class.__name__
    return f"from moe_adapt.training.modules import {name}\n\nbase = {name}.base_model({', '.join(written)})"


def _read_manifest(run: Path) -> dict[str, Any]:
    path = run / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _checkpoint_metrics(path: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured on exactly this checkpoint: the monitored value, or the run's final ones."""
    checkpoint = read_checkpoint(path)
    for state in checkpoint.get("callbacks", {}).values():
        if state.get("monitor") and Path(state.get("best_model_path") or "").name == path.name:
            return {state["monitor"]: float(state["best_model_score"])}
    if checkpoint.get("global_step") != manifest.get("steps"):
        return {}
    final = manifest.get("metrics", {})
    return {name: value for name, value in final.items() if name.startswith(("val/", "test/"))}


def _dataset_name(config: Mapping[str, Any]) -> str | None:
    source = ((config.get("data") or {}).get("init_args") or {}).get("train")
    if not isinstance(source, str):
        return None
    path = Path(source)
    return path.resolve().parent.name if path.is_file() else path.name if path.exists() else source


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"the export target {target} is a file; give a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"the export target {target} is not empty; give another folder, or overwrite=True (--overwrite)."
        )
    if not (target / CONFIG_FILE).is_file():
        raise UserError(
            f"{target} holds other files than an adapter and is not overwritten; give another folder."
        )


def _active_adapter(model: PeftModel) -> str:
    name = model.active_adapter
    if not isinstance(name, str):
        raise UserError(
            f"one adapter is exported at a time, active are {name!r}; activate one with set_adapter."
        )
    kind = model.peft_config[name].peft_type
    if kind != PEFT_TYPE:
        raise UserError(
            f"the adapter {name!r} is of type {kind}, {PEFT_TYPE} is needed; save it with PEFT itself."
        )
    return name


def _save_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    if (folder / adapter).is_dir():  # PEFT puts every adapter but "default" into a folder of its name
        for file in (folder / adapter).iterdir():
            file.replace(folder / file.name)
        (folder / adapter).rmdir()
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = hub_id(config.get("base_model_name_or_path"))
    _write_json(folder / CONFIG_FILE, config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_back(model: PeftModel, adapter: str, folder: Path) -> dict[str, torch.Tensor]:
    """Compare the file with the adapter, and with a second adapter that PEFT builds from the folder alone."""
    compare_tensors(model, adapter, folder)
    with _unchanged(model):
        model.load_adapter(str(folder), adapter_name=_CHECK)
        try:
            compare_tensors(model, _CHECK, folder)
        finally:
            model.delete_adapter(_CHECK)
    return read_tensors(folder)


@contextmanager
def _unchanged(model: PeftModel) -> Iterator[None]:
    """Restore what loading an adapter changes in passing: random state, modes, trainability."""
    modes = {name: module.training for name, module in model.named_modules()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng():
        yield
    for name, module in model.named_modules():
        module.training = modes[name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])


def _move_into_place(work: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.is_dir():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
