"""Export a run folder: its adapter, with what the run knows about itself in the card."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities import move_data_to_device
from peft import PeftModel

from moe_adapt.data.packages import local_model
from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.hub.answering import base_arguments
from moe_adapt.hub.base_code import BaseCode
from moe_adapt.hub.card import About
from moe_adapt.hub.export import ExportReport, export_experts, export_merged, export_model
from moe_adapt.hub.folder import check_target
from moe_adapt.hub.full import export_full
from moe_adapt.hub.head import export_head
from moe_adapt.hub.load import file_hash
from moe_adapt.reading import read_json
from moe_adapt.runs.rebuild import load_data, load_module, read_run_config
from moe_adapt.training.checkpoint import checkpoint_path, read_checkpoint
from moe_adapt.training.tracing import Split, split_batches
from moe_adapt.tuner import site_dropping

__all__ = ["TEST_FILE", "Form", "about_run", "dataset_name", "export_run"]

#: What is written: see `moe_adapt.hub.export` and `moe_adapt.hub.full`.
Form = Literal["adapter", "experts", "merged", "full"]

#: What ``moe-adapt test`` leaves in a run's folder.
TEST_FILE = "test.json"

_TASKS = {
    "CausalLM": "text-generation",
    "ImageClassifier": "image-classification",
    "SequenceClassifier": "text-classification",
}


def export_run(
    run: str | Path,
    to: str | Path,
    *,
    form: Form = "adapter",
    checkpoint: str = "best",
    calibration: Split = "train",
    gap: Split = "validation",
    batches: int = 32,
    max_rank: int | None = None,
    drop_sites: float = 0.0,
    license: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the adapter of a run folder.

    Args:
        run: Folder that ``moe-adapt fit`` wrote.
        to: Folder to write.
        form: The routed ``adapter``, the ``experts`` as one ordinary LoRA each, one ``merged`` LoRA, or the
            ``full`` model with the merged mixture in its weights.
        checkpoint: ``best``, ``last`` or the path of a checkpoint.
        calibration: Rows over which the merged and the full form average the gates.
        gap: Rows on which they measure what is lost, and `drop_sites` what is needed.
        batches: The most batches of each.
        max_rank: Cut the merged form to this rank.
        drop_sites: Share of the adapted layers to leave out, those that are needed least first.
        license: Identifier of the adapter's licence, for the card.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If the run cannot be rebuilt, trained no adapter, has no such rows, or `to` is in use.
    """
    if form not in get_args(Form):
        raise UserError(f"there is no form {form!r}.{did_you_mean(form, get_args(Form))}")
    if batches < 1:
        raise UserError(f"batches must be at least 1, got {batches}.")
    if max_rank is not None and form == "full":
        raise UserError("max_rank is for --form merged: a whole model keeps every rank.")
    check_target(Path(to), overwrite)
    run = Path(run)
    config = read_run_config(run)
    module: Any = load_module(run, checkpoint)
    alone = not isinstance(module.model, PeftModel)
    if alone and form != "adapter":
        raise UserError(f"the run {run} trained a head only, which has one form: leave out --form.")
    about = replace(
        about_run(run, module, config),
        metrics={
            **_checkpoint_metrics(checkpoint_path(run, checkpoint), _read_manifest(run)),
            **_test_metrics(run, checkpoint_path(run, checkpoint)),
        },
        license=license,
    )
    if drop_sites and alone:
        raise UserError(f"the run {run} trained a head only, so there are no layers to drop.")
    note = _drop(module, run, gap, batches, drop_sites) if drop_sites else ""
    if alone:
        return export_head(module.model, to, about=about, overwrite=overwrite)
    if form in ("adapter", "experts"):
        write = export_model if form == "adapter" else export_experts
        return replace(write(module.model, to, about=about, overwrite=overwrite), note=note)
    data = load_data(run)
    write_merged = export_full if form == "full" else partial(export_merged, max_rank=max_rank)
    report = write_merged(
        module.model,
        to,
        calibration=_batches(module, data, calibration, batches),
        gap_batches=_batches(module, data, gap, batches),
        run=module,
        data_names=(calibration, gap),
        about=about,
        overwrite=overwrite,
    )
    return replace(report, note=note)


def _drop(module: Any, run: Path, split: Split, limit: int, share: float) -> str:
    """Take the adapter off the layers that need it least, and say which share of the loss that is."""
    rows = list(_batches(module, load_data(run), split, limit))

    def loss() -> float:
        with torch.inference_mode():
            return sum(float(module.task_loss(batch)) for batch in rows) / max(len(rows), 1)

    necessity = site_dropping.site_necessity(module.tuner, loss)
    chosen, before = site_dropping.least_needed(necessity, share), loss()
    site_dropping.drop_sites(module.model, chosen)
    return (
        f"{len(chosen)} of {len(necessity)} layers dropped: loss on {split} rows {before:.4f} with all, "
        f"{loss():.4f} now"
    )


def about_run(run: Path, module: Any, config: Mapping[str, Any]) -> About:
    """Return what a run knows about its model, without what was measured.

    Args:
        run: The run folder.
        module: Its module.
        config: Its configuration.
    """
    arguments = config["model"].get("init_args") or {}
    return About(
        manifest=_read_manifest(run),
        task=_TASKS.get(type(module).__name__),
        dataset=dataset_name(config.get("data")),
        load_code=BaseCode.of_module(type(module), arguments),
        answering=_answering(module, arguments),
    )


def _batches(module: Any, data: Any, split: Split, limit: int) -> Iterator[Any]:
    """Give the first batches of a split, on the module's device."""
    for batch in itertools.islice(split_batches(data, split), limit):
        yield move_data_to_device(batch, module.device)


def _answering(module: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return how rows are put to the model; nothing for a class that only its author knows."""
    if not module.answering or type(module).__name__ not in _TASKS:
        return {}
    base = base_arguments(type(module), {**arguments, "backbone": module.name})
    if "num_classes" in base:
        base["num_classes"] = module.num_classes
    content = {**module.answering, "module": type(module).__name__, "base": base}
    if content["task"] != "text-classification" or len(content["text_columns"]) > 1:
        return content
    return {**content, "example": _example(module, content)}


def _example(module: Any, answering: Mapping[str, Any]) -> dict[str, Any]:
    """Return a text and what the model says about it, for the card."""
    asked = "I lost my card"
    tokenizer = load_tokenizer(local_model(str(answering["tokenizer"])), answering["max_length"])
    encoded = tokenizer([asked], return_tensors="pt")
    batch = {name: encoded[name].to(module.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        (probabilities,) = module.eval().predict_step(batch, 0)["probabilities"]
    best = int(probabilities.argmax())
    answer = {
        "prediction": str(answering["class_names"][best]),
        "probability": round(float(probabilities[best]), 4),
    }
    return {"input": asked, "answer": answer}


def _read_manifest(run: Path) -> dict[str, Any]:
    path = run / "manifest.json"
    return read_json(path, "the manifest of a run") if path.is_file() else {}


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


def _test_metrics(run: Path, checkpoint: Path) -> dict[str, float]:
    """Return what ``moe-adapt test`` measured on exactly this checkpoint."""
    path = run / TEST_FILE
    if not path.is_file():
        return {}
    found = read_json(path, "the result of a test")
    return dict(found["metrics"]) if found.get("sha256") == file_hash(checkpoint) else {}


def dataset_name(data: Mapping[str, Any] | None) -> str | None:
    """Return what the data of a run is called: as it was given, but no path that leads away from here.

    Args:
        data: Class and arguments of the data module or stream, with ``train`` among them.

    >>> dataset_name({"init_args": {"train": "glue:sst2"}})
    'glue:sst2'
    """
    source = ((data or {}).get("init_args") or {}).get("train")
    if not isinstance(source, str):
        return None
    path = Path(source)
    if not path.exists():
        return source
    inside = not path.is_absolute() and ".." not in path.parts
    return path.as_posix() if inside else "/".join(path.resolve().parts[-2:])
