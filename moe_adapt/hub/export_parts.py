"""What all forms of an export share: the active adapter, the files beside the weights, and the report."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError
from moe_adapt.hub.answering import write_answering
from moe_adapt.hub.card import About, make_card
from moe_adapt.hub.engines import engine_commands
from moe_adapt.hub.folder import folder_size, write_json
from moe_adapt.hub.gap import Gap
from moe_adapt.hub.load import WEIGHTS_FILE, file_hash
from moe_adapt.tuner.peft_plugin import PEFT_TYPE

__all__ = [
    "EXPORT_FILE",
    "Batches",
    "ExportReport",
    "active_adapter",
    "adapter_state",
    "describe",
    "evaluation_mode",
    "logits_of",
    "modes_kept",
    "report_on",
]

EXPORT_FILE = "export.json"
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
        note: What else is to be told.
    """

    folder: Path
    tensors: int
    parameters: int
    size: int
    record: Mapping[str, Any] = field(default_factory=dict)
    gap: Gap | None = None
    note: str = ""

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.tensors} tensors, {self.parameters:,} values, {self.size / 1e6:.2f} MB, "
            "read back and equal"
        )
        if self.note:
            text += f"\n{self.note}"
        if self.record["form"] == "experts":
            return text + self._engines()
        if self.record["form"] == "full":
            opened = self.record["opened_by"]
            text += f"\n{self.record['word']}, opened by {opened['library']} ({opened['class']})"
            return text + ("" if self.gap is None else f"; {self.gap}")
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


def logits_of(model: PeftModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a batch, called with all of its entries but the labels."""
    output = model(**{name: value for name, value in batch.items() if name != "labels"})
    return output if isinstance(output, Tensor) else output.logits


def active_adapter(model: PeftModel) -> str:
    """Return the name of the one active adapter.

    Raises:
        UserError: If several are active, or it is of another kind.
    """
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


def adapter_state(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the names that PEFT saves them by."""
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def describe(
    model: PeftModel, adapter: str, work: Path, target: Path, record: dict[str, Any], about: About
) -> None:
    """Write card, manifest and ``export.json``.

    Args:
        model: The model.
        adapter: Name of the adapter.
        work: The folder that is being written.
        target: The folder that it will become.
        record: What ``export.json`` is to hold; size and hash are added.
        about: What else is known.
    """
    config = model.peft_config[adapter].to_dict()
    card = make_card(config, adapter_state(model, adapter), record, about, target.resolve().name)
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


def report_on(
    folder: Path, tensors: Iterable[Tensor], record: Mapping[str, Any], gap: Gap | None = None
) -> ExportReport:
    """Return what an export wrote.

    Args:
        folder: The folder.
        tensors: All tensors in it.
        record: What ``export.json`` holds.
        gap: What merging lost, if it was measured.
    """
    counts = [tensor.numel() for tensor in tensors]
    return ExportReport(folder, len(counts), sum(counts), folder_size(folder), record, gap)


@contextmanager
def evaluation_mode(model: PeftModel) -> Iterator[None]:
    """Put a model into evaluation mode while the block runs."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: PeftModel) -> Iterator[None]:
    """Give every module its mode back when the block ends."""
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
