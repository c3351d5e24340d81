"""A continual learner as JSON types and tensors, and back.

The JSON side says what the learner is: its class, its arguments, the tasks that it grew by, and over which
backbone it was trained. The tensors are its state without the pretrained ones. Opening builds the class
anew, lets it grow as it grew, and loads (`moe_adapt.learners.Learner.restore`). Nothing is unpickled, and no
class is imported by a name in the file: it has to be one that is registered here, or the one asked for.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

import moe_adapt.backbones
from moe_adapt.backbones import Pretrained
from moe_adapt.errors import UserError
from moe_adapt.hub.arguments import check_options, describe, rebuild, settings_of
from moe_adapt.hub.base_code import is_timm_model
from moe_adapt.hub.card import hub_id
from moe_adapt.hub.fingerprint import digest
from moe_adapt.registry import Registry
from moe_adapt.signatures import constructor_arguments
from moe_adapt.streams import TaskRecord
from moe_adapt.tuner.loading import is_adapter_key

if TYPE_CHECKING:
    from moe_adapt.learners.base import Learner

__all__ = ["learner_from_parts", "learner_parts"]

#: Between the name of a state that is a mapping of tensors and the names in it.
_INNER = "::"


def learner_parts(learner: "Learner") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a learner as JSON types and tensors.

    Raises:
        UserError: If an argument or a state is of a type that cannot be kept.
    """
    tensors: dict[str, Tensor] = {}
    inner: dict[str, list[str]] = {}
    for name, value in learner.learner_state().items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping) and all(isinstance(item, Tensor) for item in value.values()):
            inner[name] = sorted(value)
            tensors |= {f"{name}{_INNER}{key}": item for key, item in value.items()}
        else:
            raise UserError(f"{name} of {type(learner).__name__} is a {type(value).__name__}, not tensors.")
    backbone = learner.backbone
    content = {
        "class": type(learner).__name__,
        "arguments": settings_of(learner),
        "backbone": None if backbone is None else {**_described(backbone), **_base(learner)},
        "history": [asdict(record) for record in learner.history],
        "inner": inner,
    }
    return content, {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def learner_from_parts(
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    expected: "type[Learner]",
    registered: "Registry[Learner]",
    backbone: Pretrained | None,
) -> "Learner":
    """Return the learner that `learner_parts` was given, in evaluation mode.

    Args:
        content: JSON types.
        tensors: Tensors by name.
        expected: The class asked for, or one above it.
        registered: The learners that are known by name.
        backbone: The pretrained model, fresh; None builds the one named in `content`.

    Raises:
        UserError: If it is of another class or over another backbone.
    """
    cls = _class(content["class"], expected, registered)
    described = content["backbone"]
    arguments = rebuild(content["arguments"])
    history = _history(content["history"])
    if described is not None:
        backbone = _build(described) if backbone is None else backbone
        _check_base(described, backbone)
        arguments["backbone"] = backbone
    elif backbone is not None:
        raise UserError("it has no backbone; leave backbone out.")
    state: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if _INNER not in name}
    for name, keys in content["inner"].items():
        state[name] = {key: tensors[f"{name}{_INNER}{key}"] for key in keys}
    unknown = sorted(arguments.keys() - {*constructor_arguments(cls), "backbone"})
    if unknown:
        raise UserError(f"its settings name {unknown[0]!r}, which is no argument of {cls.__name__}.")
    learner = cls(**arguments)
    learner.restore(history, state)
    return learner.eval()


def _class(name: str, expected: "type[Learner]", registered: "Registry[Learner]") -> "type[Learner]":
    by_class = {cls.__name__: cls for cls in map(registered.get, registered)}
    found: Any = expected if expected.__name__ == name else by_class.get(name)
    if found is None:
        raise UserError(f"its class {name!r} is none of ours; open it with {name}.from_pretrained.")
    if not issubclass(found, expected):
        raise UserError(f"it holds a {name}, not a {expected.__name__}.")
    return found


def _history(items: Iterable[Mapping[str, Any]]) -> list[TaskRecord]:
    """Return the tasks; classes have to be numbered in the order of their first appearance."""
    found: list[TaskRecord] = []
    seen: set[int] = set()
    for item in items:
        seen |= set(item["classes"])
        if item["num_seen"] != len(seen) or seen != set(range(len(seen))):
            raise UserError(f"the classes of its task {item['index']!r} do not follow those before.")
        found.append(TaskRecord(item["index"], str(item["name"]), tuple(item["classes"]), len(seen)))
    return found


# The backbone.


def _described(backbone: Pretrained) -> dict[str, Any]:
    known = inspect.signature(type(backbone)).parameters
    ours = getattr(moe_adapt.backbones, type(backbone).__name__, None) is type(backbone)
    public = ours and (hub_id(backbone.name) is not None or is_timm_model(backbone.name))
    options = {key: value for key, value in backbone.settings().items() if key in known}
    return {
        "class": type(backbone).__name__,
        "name": backbone.name if public else Path(backbone.name).name,
        "public": public,
        "options": describe(options, "backbone"),
    }


def _base(learner: "Learner") -> dict[str, Any]:
    """Return hashes of the pretrained tensors: of their shapes, and of their values if they are frozen."""
    prefix = "backbone."
    state = {
        _plain(name.removeprefix(prefix)): tensor
        for name, tensor in learner.state_dict().items()
        if name.startswith(prefix) and not is_adapter_key(name) and ".modules_to_save." not in name
    }
    frozen = {_plain(name.removeprefix(prefix)) for name in learner.base_names()} & state.keys()
    values = digest({name: state[name] for name in frozen}) if frozen else None
    return {"shapes": digest(state, samples=0), "values": values, "frozen": len(frozen)}


def _plain(name: str) -> str:
    """Return the name that a tensor of an adapted model had before."""
    name = name.replace("model.base_model.model.", "model.", 1)
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _build(described: Mapping[str, Any]) -> Pretrained:
    name, kind = described["name"], described["class"]
    cls: Any = getattr(moe_adapt.backbones, str(kind), None)
    ours = inspect.isclass(cls) and issubclass(cls, Pretrained)
    if not ours or described["public"] is not True:
        raise UserError(
            f"it was trained over {name!r}, a {kind} that cannot be built from its name; pass it as backbone."
        )
    if hub_id(str(name)) is None and not is_timm_model(str(name)):
        raise UserError(
            f"it names the backbone {name!r}, which is none on the Hub or in timm; pass it as backbone."
        )
    if Path(str(name)).exists():
        raise UserError(
            f"it names the backbone {name!r}, and there is a folder of that name here, which nobody "
            "asked to open; pass "
            "the backbone, or work in another folder."
        )
    options = rebuild(described["options"])
    check_options(options, inspect.signature(cls).parameters, kind)
    return cls(backbone=name, **options)


def _check_base(described: Mapping[str, Any], backbone: Pretrained) -> None:
    if backbone.adapted:
        raise UserError("the backbone at hand has an adapter already; pass a fresh one.")
    state = backbone.state_dict()
    same = digest(state, samples=0) == described["shapes"]
    if same and described["values"] is not None:
        same = len(state) == described["frozen"] and digest(state) == described["values"]
    if not same:
        raise UserError(
            f"it was trained over other pretrained weights ({described['name']!r}) than those of "
            f"{backbone.name!r}; pass the backbone that its README.md names."
        )
