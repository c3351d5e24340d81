"""Export and open what a run without a tuner trained: the head of a frozen backbone.

The folder has the head's tensors (``head.safetensors``, by their names in the base model), what is needed to
put rows to it (``answering.json`` and the tokenizer's files) and a card. PEFT does not read it;
`moe_adapt.pipeline`, ``predict`` and ``serve`` do.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError
from moe_adapt.hub import card_text as text
from moe_adapt.hub.answering import write_answering
from moe_adapt.hub.card import About, card_metadata, hub_id
from moe_adapt.hub.card_use import use_section
from moe_adapt.hub.export import EXPORT_FILE, ExportReport
from moe_adapt.hub.folder import folder_size, new_folder, write_json
from moe_adapt.hub.load import file_hash
from moe_adapt.reading import read_tensors

__all__ = ["HEAD_FILE", "export_head", "load_head"]

HEAD_FILE = "head.safetensors"


def export_head(model: nn.Module, to: str | Path, *, about: About, overwrite: bool = False) -> ExportReport:
    """Write the trained tensors of a model whose backbone is frozen.

    Args:
        model: The model; what requires gradients is its head.
        to: Folder to write.
        about: What the card should say, and how rows are put to the model.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If nothing was trained, or the target is in use.
    """
    head = {
        name: parameter.detach().cpu().contiguous().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if not head or not about.answering:
        raise UserError("the run trained neither an adapter nor a head that could be exported.")
    with new_folder(Path(to), overwrite) as work:
        save_file(head, work / HEAD_FILE, {"format": "pt"})
        write_answering(work, about.public_answering())
        if about.answering.get("tokenizer"):
            load_tokenizer(str(about.answering["tokenizer"]), 2).save_pretrained(work)
        if about.manifest:
            write_json(work / "manifest.json", about.manifest)
        _card(head, about, Path(to).resolve().name).save(work / "README.md")
        record = {"form": "head", "word": "lossless", "sha256": file_hash(work / HEAD_FILE)}
        write_json(work / EXPORT_FILE, record)
    values = sum(tensor.numel() for tensor in head.values())
    return ExportReport(Path(to), len(head), values, folder_size(Path(to)), record)


def load_head(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put an exported head into its base model, and return the model.

    Args:
        model: The base model.
        folder: The export.

    Raises:
        UserError: If a tensor does not fit.
    """
    head = read_tensors(Path(folder) / HEAD_FILE)
    live = dict(model.named_parameters())
    for name, tensor in head.items():
        if name not in live or live[name].shape != tensor.shape:
            raise UserError(f"the head in {folder} does not fit the base model: {name} is another one there.")
        with torch.no_grad():
            live[name].copy_(tensor)
    return model


def _card(head: dict[str, Tensor], about: About, title: str) -> ModelCard:
    base = about.answering.get("base") or {}
    name: Any = about.base_model or base.get("backbone")
    identifier = hub_id(name)
    data = card_metadata(
        title, about, library=None, base_model=identifier, task=about.task, tags=["moe-adapt", "linear-head"]
    )
    values = sum(tensor.numel() for tensor in head.values())
    sections = [
        f"# {title}",
        f"A head of {values:,} values on the frozen features of {text.describe_base(name, identifier)}, "
        "trained with moe-adapt. The backbone is as it was published.",
        *use_section(about.public_answering(), "adapter"),
        "## Results\n\n" + text.results(about.dataset, about.measured()),
        "## Limits\n\n" + text.limits({"form": "head", "word": "lossless"}),
        "## Where it comes from\n\n" + text.provenance(about.manifest),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
