"""The model card of a continual learner: what it is, what it knows, how well, how to go on."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard
from torch import Tensor

from moe_adapt.hub import card_text as text
from moe_adapt.hub.card import About, card_metadata

__all__ = ["make_learner_card"]

_DRIFT_CODE = """\
from moe_adapt.drift.driftmoe import DriftMoEClassifier

model = DriftMoEClassifier.from_pretrained("PATH_OR_ID_OF_THIS_LEARNER")
model.predict_one(x)
model.learn_one(x, y)  # goes on where it was kept"""

_LIMITS = [
    "What it learns next is learned over what is here; the results above hold for the stream that they were "
    "measured on.",
    "Nobody has checked it for bias or safety.",
]

#: Class names that are listed for each task.
_SHOWN = 20


def make_learner_card(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor], about: About, title: str
) -> ModelCard:
    """Write the card of a learner.

    Args:
        content: What ``learner.json`` holds.
        tensors: What ``learner.safetensors`` holds.
        about: What else is known.
        title: Heading, and the model's name in the metadata.
    """
    backbone = content.get("backbone")
    identifier = backbone["name"] if backbone and backbone["public"] and "/" in backbone["name"] else None
    drift = content["kind"] == "driftmoe"
    metadata = card_metadata(
        title,
        about,
        library="moe-adapt",
        base_model=identifier,
        task=about.task or ("tabular-classification" if drift else None),
        tags=["moe-adapt", "continual-learning", content["class"], *["river"] * drift],
    )
    values = sum(tensor.numel() for tensor in tensors.values())
    sections = [
        f"# {title}",
        _introduction(content, f"{values:,} values in {len(tensors)} tensors"),
        "## How to load\n\n```bash\npip install moe-adapt\n```\n\n```python\n"
        + (_DRIFT_CODE if drift else _code(content))
        + "\n```\n\nEvery tensor is checked; nothing is unpickled.",
        *([] if drift else ["## Tasks\n\n" + _tasks(content["history"], about.manifest)]),
        "## Results\n\n" + text.results(about.dataset, about.measured()),
        *text.stream_section(about.stream),
        "## Settings\n\n" + _settings(content["state"]["settings"] if drift else content["arguments"]),
        "## Limits\n\n" + "\n".join(f"* {limit}" for limit in _limits(content)),
        "## Where it comes from\n\n" + text.provenance(about.manifest),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _introduction(content: Mapping[str, Any], size: str) -> str:
    if content["kind"] == "driftmoe":
        rows = content["state"]["events"]["rows"]
        labels = len(content["state"]["labels"])
        return (
            f"DriftMoE (arXiv 2507.18464) in the middle of a stream: online experts and a router after "
            f"{rows:,} rows with {labels} labels, {size}. Written by moe-adapt."
        )
    backbone, history = content["backbone"], content["history"]
    base = "" if backbone is None else f" over {_name_of(backbone)}"
    classes = history[-1]["num_seen"] if history else 0
    known = f" and {classes} classes" if classes else ""
    return (
        f"The continual learner `{content['class']}` of moe-adapt{base}, after {len(history)} tasks{known}: "
        f"{size}, the pretrained weights not among them."
    )


def _name_of(backbone: Mapping[str, Any]) -> str:
    if not backbone["public"]:
        return f"a `{backbone['class']}` named `{backbone['name']}`, which is not on the Hub"
    return text.describe_base(backbone["name"], backbone["name"] if "/" in backbone["name"] else None)


def _code(content: Mapping[str, Any]) -> str:
    name, backbone = content["class"], content["backbone"]
    lines = [f"from moe_adapt.learners import {name}"]
    argument = ""
    if backbone is not None and not backbone["public"]:
        options = "".join(f", {key}={value!r}" for key, value in backbone["options"].items())
        lines += [f"from moe_adapt.backbones import {backbone['class']}", ""]
        lines += [f'backbone = {backbone["class"]}("PATH_OF/{backbone["name"]}"{options})']
        argument = ", backbone=backbone"
    else:
        lines += [""]
    return "\n".join([*lines, f'learner = {name}.from_pretrained("PATH_OR_ID_OF_THIS_LEARNER"{argument})'])


def _tasks(history: list[Mapping[str, Any]], manifest: Mapping[str, Any]) -> str:
    if not history:
        return "None yet."
    names = (manifest.get("stream") or {}).get("class_order") or []
    rows = []
    for record in history:
        shown = [str(names[c]) if c < len(names) else str(c) for c in record["classes"][:_SHOWN]]
        more = ", ..." if len(record["classes"]) > _SHOWN else ""
        rows.append((record["index"], record["name"], len(record["classes"]), ", ".join(shown) + more))
    return text.table(("task", "name", "classes", "which, by their numbers in ascending order"), rows)


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [(f"`{name}`", f"`{value!r}`".replace("|", "\\|")) for name, value in sorted(settings.items())]
    return text.table(("argument", "value"), rows)


def _limits(content: Mapping[str, Any]) -> list[str]:
    base = ["It fits only the backbone that it was trained over, which is checked."]
    return [*(base if content.get("backbone") else []), *_LIMITS]
