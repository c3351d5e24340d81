"""The model card of a continual learner: what it is, what it knows, how well, how to go on."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard
from torch import Tensor

from moe_adapt.hub import card_text as text
from moe_adapt.hub.card import About, card_metadata
from moe_adapt.hub.card_parts import CardParts

__all__ = ["make_learner_card"]

_LIMITS = [
    "What it learns next is learned over what is here; the results above hold for the stream that they were "
    "measured on.",
    "Nobody has checked it for bias or safety.",
]


def make_learner_card(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor], about: About, parts: CardParts, title: str
) -> ModelCard:
    """Write the card of a learner.

    Args:
        content: What ``learner.json`` holds.
        tensors: What ``learner.safetensors`` holds.
        about: What else is known.
        parts: What its kind tells.
        title: Heading, and the model's name in the metadata.
    """
    metadata = card_metadata(
        title,
        about,
        library="moe-adapt",
        base_model=parts.base_model,
        task=about.task or parts.task,
        tags=["moe-adapt", "continual-learning", content["class"], *parts.tags],
    )
    values = sum(tensor.numel() for tensor in tensors.values())
    size = f"{values:,} values in {len(tensors)} tensors"
    settings = [(f"`{name}`", _code_cell(value)) for name, value in sorted(parts.settings.items())]
    sections = [
        f"# {title}",
        parts.introduction.replace("{size}", size),
        f"## How to load\n\n{text.INSTALL.format(extra='')}\n\n```python\n"
        f"{parts.code}\n```\n\nEvery tensor is checked; nothing is unpickled.",
        *parts.sections,
        "## Results\n\n" + text.results(about.dataset, about.measured()),
        *text.stream_section(about.stream),
        "## Settings\n\n" + text.table(("argument", "value"), settings),
        "## Limits\n\n" + "\n".join(f"* {limit}" for limit in (*parts.limits, *_LIMITS)),
        "## Where it comes from\n\n" + text.provenance(about.manifest),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _code_cell(value: Any) -> str:
    return f"`{value!r}`".replace("|", "\\|")
