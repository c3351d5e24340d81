"""Write an adapter as a folder that PEFT loads: weights, configuration, model card and manifest.

Three forms: the routed adapter as it is (`export_model`), every expert as an ordinary LoRA
(`export_experts`), and one ordinary LoRA in the place of the mixture (`export_merged`). The last two need
nothing but PEFT to load, and lose the router. Each is written under a temporary name beside the target,
opened again and compared with the model in memory, and only then renamed, so a target never holds half an
export. Nothing is sent anywhere.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError
from moe_adapt.experts.conv import ConvGeometry
from moe_adapt.hub.answering import write_answering
from moe_adapt.hub.calibration import constant_gates, mean_gates
from moe_adapt.hub.card import About, expert_card, hub_id, make_card
from moe_adapt.hub.engines import engine_commands
from moe_adapt.hub.folder import folder_size, new_folder, write_json
from moe_adapt.hub.gap import Gap, measure_gap
from moe_adapt.hub.load import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_adapter_folder,
    compare_tensors,
    file_hash,
    read_tensors,
)
from moe_adapt.hub.mixture import LowRank, concatenate, single_expert, truncate
from moe_adapt.hub.stock import served_rank, stock_rank, write_stock_lora
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.peft_plugin import PEFT_TYPE, PREFIX

__all__ = ["EXPORT_FILE", "ExportReport", "export_experts", "export_merged", "export_model"]

EXPORT_FILE = "export.json"
_CHECK = "export_check"
Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: The adapter's folder.
        tensors: Number of tensors, all of them compared after writing.
        parameters: Number of values in them.
        size: Bytes of the whole folder.
        record: What ``export.json`` holds.
        gap: What merging lost, if it was measured.
    """

    folder: Path
    tensors: int
    parameters: int
    size: int
    record: Mapping[str, Any] = field(default_factory=dict)
    gap: Gap | None = None

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.tensors} tensors, {self.parameters:,} values, {self.size / 1e6:.2f} MB, "
            "read back and equal"
        )
        if self.record["form"] == "experts":
            return text + self._engines()
        if self.record["form"] != "merged":
            return text
        text += f"\n{self.record['word']}, rank {self.record['rank']}"
        if self.record["largest_error"] > 0:
            text += f", cut off: {self.record['largest_error']:.3f} of a layer's change at most"
        served = self.record["max_lora_rank"]
        if served is None:
            text += "; larger than vLLM serves (512): cut it with --max_rank"
        elif served > 16:
            text += f"; vLLM needs --max-lora-rank {served}"
        return text + ("" if self.gap is None else f"; {self.gap}")

    def _engines(self) -> str:
        """Return how engines load the experts; nothing for experts that write no text."""
        rank = self.record["max_lora_rank"]
        if self.record.get("task") != "CAUSAL_LM" or rank is None:
            return ""
        folders = [self.folder / name for name in self.record["experts"]]
        named = {
            folder.name if not folder.name.isdigit() else f"{self.folder.name}-{folder.name}": folder
            for folder in folders
        }
        return "\n" + engine_commands(named, self.record["base"] or "FOLDER_OF_THE_BASE_MODEL", rank)


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
    adapter = _active_adapter(peft_model)
    with new_folder(Path(to), overwrite) as work:
        _save_adapter(peft_model, adapter, work)
        check_adapter_folder(work)
        tensors = _read_back(peft_model, adapter, work)
        record = {"form": "adapter", "word": "lossless"}
        _describe(peft_model, adapter, work, Path(to), record, about or About())
    return _report(Path(to), tensors.values(), record)


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
    adapter = _active_adapter(peft_model)
    banks = {layer.site: layer.bank(adapter) for layer in _layers(peft_model, adapter)}
    count = max(bank.num_experts for bank in banks.values())
    head, settings = _head(peft_model, adapter), _settings(peft_model, adapter)
    geometries = {layer.site: _geometry(layer) for layer in _layers(peft_model, adapter)}
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
        _describe(peft_model, adapter, work, Path(to), record, about or About())
    return _report(Path(to), written, record)


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
    adapter = _active_adapter(peft_model)
    tuner: Any = peft_model.base_model
    run = run or (lambda batch: _logits(peft_model, batch))
    with new_folder(Path(to), overwrite) as work, _evaluation_mode(peft_model):
        record: dict[str, Any] = {"form": "merged", "gates": "constant", "calibration": None}
        gates = constant_gates(tuner, adapter)
        if gates is None:
            if calibration is None:
                raise UserError(
                    "the gates of this adapter depend on the token, so merging it needs calibration data to "
                    "average them over; give calibration batches, or export another form."
                )
            found = mean_gates(tuner, adapter, calibration, run)
            gates = {site: value.mean for site, value in found.items()}
            tokens = max(value.tokens for value in found.values())
            record |= {"gates": "calibrated", "calibration": {"tokens": tokens, "data": data_names[0]}}
            record["gate_std"] = {site: value.std.tolist() for site, value in found.items()}
        record["mean_gates"] = {site: value.tolist() for site, value in gates.items()}
        merged, record["errors"] = _merge(peft_model, adapter, gates, max_rank)
        record["rank"] = stock_rank(merged)
        record["max_lora_rank"] = served_rank(record["rank"])
        record["largest_error"] = max(record["errors"].values())
        exact = record["gates"] == "constant" and record["largest_error"] == 0
        record["word"] = "lossless" if exact else "lossy"
        gap = None if gap_batches is None else measure_gap(tuner, merged, gap_batches, run)
        record |= {"gap": None if gap is None else gap.to_dict(), "gap_data": data_names[1]}
        write_stock_lora(work, merged, _head(peft_model, adapter), **_settings(peft_model, adapter))
        tensors = read_tensors(work)
        _describe(peft_model, adapter, work, Path(to), record, about or About())
    return _report(Path(to), tensors.values(), record, gap)


def _merge(
    model: PeftModel, adapter: str, gates: Mapping[str, Tensor], max_rank: int | None
) -> tuple[dict[str, LowRank], dict[str, float]]:
    """Return the LoRA of each layer, and how much of it the truncation cost."""
    merged, errors = {}, {}
    for layer in _layers(model, adapter):
        lora = concatenate(layer.bank(adapter), gates[layer.site])
        lora = replace(lora, geometry=_geometry(layer))
        merged[layer.site], errors[layer.site] = truncate(lora, lora.rank if max_rank is None else max_rank)
    return merged, errors


def _geometry(layer: Any) -> ConvGeometry | None:
    """Return what a convolution reads; None for a linear layer.

    Raises:
        UserError: If PEFT's LoRA would read other values.
    """
    geometry = getattr(layer, "geometry", None)
    if geometry is not None and not geometry.readable:
        raise UserError(
            f"{layer.site} is a convolution with dilation {geometry.dilation} and {geometry.mode!r} padding, "
            "which PEFT's LoRA does not copy from the base; export the routed adapter, or leave the layer "
            "out with exclude_modules."
        )
    return geometry


def _layers(model: PeftModel, adapter: str) -> list[Any]:
    return [layer for layer in adapted_layers(model) if adapter in layer.specs]


def _logits(model: PeftModel, batch: Mapping[str, Tensor]) -> Tensor:
    output = model(**{name: value for name, value in batch.items() if name != "labels"})
    return output if isinstance(output, Tensor) else output.logits


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


def _state(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def _head(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Return the tensors of modules that were trained whole."""
    return {name: tensor for name, tensor in _state(model, adapter).items() if PREFIX not in name}


def _settings(model: PeftModel, adapter: str) -> dict[str, Any]:
    """Return what an ordinary LoRA's configuration takes over."""
    config = model.peft_config[adapter]
    return {
        "task_type": config.task_type,
        "modules_to_save": getattr(config, "modules_to_save", None),
        "base_model_name_or_path": hub_id(config.base_model_name_or_path),
    }


def _describe(
    model: PeftModel, adapter: str, work: Path, target: Path, record: dict[str, Any], about: About
) -> None:
    """Write card, manifest and ``export.json``."""
    config = model.peft_config[adapter].to_dict()
    card = make_card(config, _state(model, adapter), record, about, target.resolve().name)
    card.save(work / "README.md")
    if about.answering and record["form"] == "adapter":
        write_answering(work, about.public_answering())
        if about.answering.get("tokenizer"):
            load_tokenizer(str(about.answering["tokenizer"]), 2).save_pretrained(work)
    if about.manifest:
        write_json(work / "manifest.json", about.manifest)
    record["bytes"] = folder_size(work)
    if (work / WEIGHTS_FILE).is_file():
        record["sha256"] = file_hash(work / WEIGHTS_FILE)
    write_json(work / EXPORT_FILE, record)


def _report(
    folder: Path, tensors: Iterable[Tensor], record: Mapping[str, Any], gap: Gap | None = None
) -> ExportReport:
    counts = [tensor.numel() for tensor in tensors]
    return ExportReport(folder, len(counts), sum(counts), folder_size(folder), record, gap)


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
    with torch.random.fork_rng(), _modes_kept(model):
        yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])


@contextmanager
def _evaluation_mode(model: PeftModel) -> Iterator[None]:
    with _modes_kept(model):
        model.eval()
        yield


@contextmanager
def _modes_kept(model: PeftModel) -> Iterator[None]:
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
