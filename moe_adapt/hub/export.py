"""Write an adapter as a folder that PEFT loads: weights, configuration, model card and manifest.

Three forms: the routed adapter as it is (`export_model`), every expert as an ordinary LoRA
(`export_experts`), and one ordinary LoRA in the place of the mixture (`export_merged`). The last two need
nothing but PEFT to load, and lose the router; so does a whole model (`moe_adapt.hub.full`). Each is written
under a temporary name beside the target, opened again and compared with the model in memory, and only then
renamed, so a target never holds half an export. Nothing is sent anywhere.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.hub.card import About, expert_card, hub_id
from moe_adapt.hub.export_parts import (
    EXPORT_FILE,
    Batches,
    ExportReport,
    active_adapter,
    adapter_state,
    describe,
    evaluation_mode,
    logits_of,
    modes_kept,
    report_on,
)
from moe_adapt.hub.folder import new_folder, write_json
from moe_adapt.hub.gap import measure_gap
from moe_adapt.hub.load import CONFIG_FILE, check_adapter_folder, compare_tensors, read_tensors
from moe_adapt.hub.merged import geometry_of, merge_mixture, routed_layers
from moe_adapt.hub.mixture import single_expert
from moe_adapt.hub.stock import served_rank, stock_rank, write_stock_lora
from moe_adapt.tuner.peft_plugin import PREFIX

__all__ = ["EXPORT_FILE", "ExportReport", "export_experts", "export_merged", "export_model"]

_CHECK = "export_check"


def export_model(
    peft_model: PeftModel, to: str | Path, *, about: About | None = None, overwrite: bool = False
) -> ExportReport:
    """Write the active adapter of a model, router and all.

    Args:
        peft_model: The model, with one active routed-LoRA adapter.
        to: Folder to write.
        about: What the card should say beside what the model knows.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If the target is in use, the adapter is of another kind, or what was written does not read
            back.
    """
    adapter = active_adapter(peft_model)
    with new_folder(Path(to), overwrite) as work:
        _save_adapter(peft_model, adapter, work)
        check_adapter_folder(work)
        tensors = _read_back(peft_model, adapter, work)
        record = {"form": "adapter", "word": "lossless"}
        describe(peft_model, adapter, work, Path(to), record, about or About())
    return report_on(Path(to), tensors.values(), record)


def export_experts(
    peft_model: PeftModel, to: str | Path, *, about: About | None = None, overwrite: bool = False
) -> ExportReport:
    """Write every expert of the active adapter as an ordinary LoRA in ``experts/<index>``.

    The first expert of every layer goes to ``experts/0`` and so on; a layer with fewer experts is left out of
    the later ones. Modules trained whole, such as a head, are in every folder.

    Args:
        peft_model: See `export_model`.
        to: See `export_model`.
        about: See `export_model`.
        overwrite: See `export_model`.

    Raises:
        UserError: See `export_model`.
    """
    adapter = active_adapter(peft_model)
    layers = routed_layers(peft_model, adapter)
    banks = {layer.site: layer.bank(adapter).own_factors() for layer in layers}
    count = max(bank.num_experts for bank in banks.values())
    head, settings = _head(peft_model, adapter), _settings(peft_model, adapter)
    geometries = {layer.site: geometry_of(layer) for layer in layers}
    with new_folder(Path(to), overwrite) as work:
        written: list[Tensor] = []
        rank = 0
        for expert in range(count):
            folder = work / "experts" / str(expert)
            folder.mkdir(parents=True)
            sites = {
                site: replace(single_expert(bank, expert), geometry=geometries[site])
                for site, bank in banks.items()
                if expert < bank.num_experts
            }
            rank = max(rank, stock_rank(sites))
            write_stock_lora(folder, sites, head, **settings)
            expert_card(
                peft_model.peft_config[adapter].to_dict(), about or About(), Path(to).resolve().name, expert
            ).save(folder / "README.md")
            written += read_tensors(folder).values()
        names = [f"experts/{expert}" for expert in range(count)]
        record = {
            "form": "experts",
            "word": "lossy",
            "experts": names,
            "rank": rank,
            "max_lora_rank": served_rank(rank),
            "task": settings["task_type"],
            "base": settings["base_model_name_or_path"],
        }
        describe(peft_model, adapter, work, Path(to), record, about or About())
    return report_on(Path(to), written, record)


def export_merged(
    peft_model: PeftModel,
    to: str | Path,
    *,
    calibration: Batches | None = None,
    gap_batches: Batches | None = None,
    run: Callable[[Any], Tensor] | None = None,
    max_rank: int | None = None,
    data_names: tuple[str | None, str | None] = (None, None),
    about: About | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write one ordinary LoRA in the place of the active adapter's mixture.

    Constant gates give an exact result. Otherwise every gate is replaced by its mean over the calibration
    data, and what that loses is measured on `gap_batches`.

    Args:
        peft_model: See `export_model`.
        to: See `export_model`.
        calibration: Batches to average gates over; needed unless they are constant.
        gap_batches: Batches to measure the gap on, best other rows than those of the calibration; None
            leaves it out.
        run: Returns the logits of a batch; None calls the model with the batch's entries but the labels.
        max_rank: Layers of a larger rank are cut to this one; None keeps every layer exact.
        data_names: What the calibration and the gap's rows are called in the card.
        about: See `export_model`.
        overwrite: See `export_model`.

    Raises:
        UserError: See `export_model`; also without calibration data where it is needed.
    """
    if max_rank is not None and max_rank < 1:
        raise UserError(f"max_rank must be at least 1, got {max_rank}.")
    adapter = active_adapter(peft_model)
    tuner: Any = peft_model.base_model
    run = run or (lambda batch: logits_of(peft_model, batch))
    with new_folder(Path(to), overwrite) as work, evaluation_mode(peft_model):
        merged, found = merge_mixture(
            peft_model,
            adapter,
            calibration=calibration,
            run=run,
            data_name=data_names[0],
            max_rank=max_rank,
        )
        record = {"form": "merged", **found, "rank": stock_rank(merged)}
        record["max_lora_rank"] = served_rank(record["rank"])
        exact = record["gates"] == "constant" and record["largest_error"] == 0
        record["word"] = "lossless" if exact else "lossy"
        gap = None if gap_batches is None else measure_gap(tuner, merged, gap_batches, run)
        record |= {"gap": None if gap is None else gap.to_dict(), "gap_data": data_names[1]}
        write_stock_lora(work, merged, _head(peft_model, adapter), **_settings(peft_model, adapter))
        tensors = read_tensors(work)
        describe(peft_model, adapter, work, Path(to), record, about or About())
    return report_on(Path(to), tensors.values(), record, gap)


def _head(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Return the tensors of modules that were trained whole."""
    return {name: tensor for name, tensor in adapter_state(model, adapter).items() if PREFIX not in name}


def _settings(model: PeftModel, adapter: str) -> dict[str, Any]:
    """Return what an ordinary LoRA's configuration takes over."""
    config = model.peft_config[adapter]
    return {
        "task_type": config.task_type,
        "modules_to_save": getattr(config, "modules_to_save", None),
        "base_model_name_or_path": hub_id(config.base_model_name_or_path),
    }


def _save_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    if (folder / adapter).is_dir():  # PEFT puts every adapter but "default" into a folder of its name
        for file in (folder / adapter).iterdir():
            file.replace(folder / file.name)
        (folder / adapter).rmdir()
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = hub_id(config.get("base_model_name_or_path"))
    config["experts_from"] = None  # their factors are in the file; where they lay here is nobody's business
    write_json(folder / CONFIG_FILE, config)


def _read_back(model: PeftModel, adapter: str, folder: Path) -> dict[str, Tensor]:
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
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(), modes_kept(model):
        yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
