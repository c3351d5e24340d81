"""What the model card of a learner of task streams tells: its base, its tasks, how to open it."""

from collections.abc import Mapping
from typing import Any

from moe_adapt.hub import card_text as text
from moe_adapt.hub.card_parts import CardParts

__all__ = ["learner_card_parts"]

#: Class names that are listed for each task.
_SHOWN = 20


def learner_card_parts(content: Mapping[str, Any], manifest: Mapping[str, Any]) -> CardParts:
    """Return what the card tells.

    Args:
        content: What `moe_adapt.learners.parts.learner_parts` returned.
        manifest: Manifest of the run over the stream; empty if there is none.
    """
    backbone, history = content["backbone"], content["history"]
    base = "" if backbone is None else f" over {_name_of(backbone)}"
    classes = history[-1]["num_seen"] if history else 0
    known = f" and {classes} classes" if classes else ""
    fits = "It fits only the backbone that it was trained over, which is checked."
    return CardParts(
        introduction=(
            f"The continual learner `{content['class']}` of moe-adapt{base}, after {len(history)} "
            f"tasks{known}: {{size}}, the pretrained weights not among them."
        ),
        code=_code(content),
        settings=content["arguments"],
        base_model=None if backbone is None else _hub_id(backbone),
        sections=["## Tasks\n\n" + _tasks(history, manifest)],
        limits=[] if backbone is None else [fits],
    )


def _hub_id(backbone: Mapping[str, Any]) -> str | None:
    return backbone["name"] if backbone["public"] and "/" in backbone["name"] else None


def _name_of(backbone: Mapping[str, Any]) -> str:
    if not backbone["public"]:
        return f"a `{backbone['class']}` named `{backbone['name']}`, which is not on the Hub"
    return text.describe_base(backbone["name"], _hub_id(backbone))


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
