"""The arguments that a learner was made with, as JSON and back; only types that are listed here are built.

Numbers, text, lists and mappings stay what they are. An object becomes a mapping with ``"is"``: what it is,
and ``"options"``: what it was made with. Reading imports nothing and calls nothing but these: the classes in
`SETTINGS`, the optimisers of `torch.optim`, and `moe_adapt.optim.groups.momentum_sgd`.
"""

import dataclasses
import inspect
import math
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moe_adapt.errors import UserError
from moe_adapt.optim.groups import momentum_sgd
from moe_adapt.registry import Registry
from moe_adapt.signatures import constructor_arguments
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["SETTINGS", "check_options", "describe", "rebuild", "settings_of"]

#: Settings objects by name; a learner with settings of its own registers their dataclass where it is defined.
SETTINGS: Registry[Any] = Registry("settings object")
SETTINGS.register("RoutedLoraConfig")(RoutedLoraConfig)
#: Constructors of optimisers by name.
OPTIMIZERS: dict[str, Any] = {
    "momentum_sgd": momentum_sgd,
    **{
        name: cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    },
}
#: Of an adapter's configuration: what is known again from the model, or says where files lay.
LEFT_OUT = {
    "base_model_name_or_path",
    "peft_type",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "revision",
}


def settings_of(learner: Any) -> dict[str, Any]:
    """Return the constructor's arguments of a learner but its backbone, as JSON types.

    Raises:
        UserError: If one is of a type that has no description.
    """
    names = [name for name in constructor_arguments(type(learner)) if name != "backbone"]
    return {name: describe(getattr(learner, name), name) for name in names}


def describe(value: Any, name: str) -> Any:
    """Return a value as JSON types.

    Args:
        value: The value.
        name: What it is called, for the message.

    Raises:
        UserError: If its type is none of those listed.
    """
    if (
        value is None
        or isinstance(value, bool | int | str)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    if isinstance(value, list | tuple):
        return [describe(item, name) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item, name) for key, item in value.items()}
    if type(value) is RoutedLoraConfig:
        return {"is": "RoutedLoraConfig", "options": _tuner_options(value, name)}
    if type(value).__name__ in SETTINGS and type(value) is SETTINGS.get(type(value).__name__):
        return {"is": type(value).__name__, "options": describe(dataclasses.asdict(value), name)}
    return _describe_optimizer(value, name)


def _tuner_options(config: RoutedLoraConfig, name: str) -> dict[str, Any]:
    sources = config.experts_from or []
    for source in sources.values() if isinstance(sources, dict) else sources:
        if Path(source).exists():
            raise UserError(
                f"{name} takes experts from the folder {source!r}, which nobody else has; publish them and "
                "name them by their id on the Hub."
            )
    fresh = RoutedLoraConfig(method=config.method)
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {
        key: value
        for key, value in options.items()
        if key not in LEFT_OUT and (key == "method" or value != getattr(fresh, key))
    }
    return describe(kept, name)


def _describe_optimizer(value: Any, name: str) -> dict[str, Any]:
    function, options = value, {}
    if isinstance(value, partial):  # that of the command line holds the class among its arguments
        classes = [item for item in (value.func, *value.args) if item in OPTIMIZERS.values()]
        function, options = (classes or [value])[0], value.keywords
    for known, constructor in OPTIMIZERS.items():
        if function is constructor:
            return {"is": f"optimizer {known}", "options": describe(options, name)}
    raise UserError(
        f"{name}={value!r} cannot be kept as JSON; give numbers, text, a RoutedLoraConfig, or an optimiser "
        "of torch.optim, with functools.partial for its options."
    )


def rebuild(value: Any) -> Any:
    """Return what `describe` was given.

    Args:
        value: JSON types.

    Raises:
        UserError: If it names an object that is not listed.
    """
    if isinstance(value, list):
        return [rebuild(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "is" not in value:
        return {key: rebuild(item) for key, item in value.items()}
    kind, options = str(value["is"]), rebuild(value.get("options") or {})
    if kind in SETTINGS:
        _check_settings(kind, options)
        return SETTINGS.get(kind)(**options)
    optimizer = OPTIMIZERS.get(kind.removeprefix("optimizer "))
    if optimizer is None:
        raise UserError(f"its settings name {kind!r}, which is none of ours.")
    known = inspect.signature(optimizer).parameters
    for key, option in options.items():
        if key not in known or not isinstance(option, bool | int | float | str | list | None):
            raise UserError(f"its settings give the optimiser {kind!r} the option {key}={option!r:.60}.")
    return partial(optimizer, **options) if options else optimizer


def _check_settings(kind: str, options: Mapping[str, Any]) -> None:
    allowed = {field.name for field in dataclasses.fields(SETTINGS.get(kind))} - LEFT_OUT
    unknown = sorted(options.keys() - allowed)
    if unknown:
        raise UserError(
            f"its settings name {unknown[0]!r}, which is no option of {kind} that a file may set."
        )
    sources = options.get("experts_from") or []
    for source in sources.values() if isinstance(sources, dict) else sources:
        if Path(str(source)).expanduser().exists():
            raise UserError(
                f"its settings take experts from {source!r}, a folder here that nobody asked to open."
            )


def check_options(options: Mapping[str, Any], known: Collection[str], kind: str) -> None:
    """Check that a file sets only what shapes a backbone, never what runs code or opens files.

    Args:
        options: Options of a backbone, from a file.
        known: Names of its constructor's arguments.
        kind: Name of its class, for messages.

    Raises:
        UserError: If an option is not in the list, or its value is not plain.
    """
    for key, value in options.items():
        if key in ("checkpoint", "backbone") and value is not None:
            raise UserError(f"it sets {key} of {kind} to {value!r}, a file here that nobody asked to open.")
        if key not in known:
            raise UserError(f"it sets {key!r}, which is no option of {kind}.")
        inner = value if isinstance(value, Mapping) else {}
        for name, setting in inner.items():
            plain = setting is None or isinstance(setting, bool | int | float | list)
            if name not in MODEL_OPTIONS or not (plain or setting in MODEL_WORDS):
                raise UserError(
                    f"it sets {key}.{name} of {kind} to {setting!r:.60}, which a file must not; build "
                    "the backbone and "
                    "pass it as backbone."
                )


#: Options of a pretrained model that a file may set: what changes shapes and dropout.
MODEL_OPTIONS = {
    "add_pooling_layer",
    "attn_drop_rate",
    "attn_implementation",
    "drop_path_rate",
    "drop_rate",
    "dynamic_img_pad",
    "dynamic_img_size",
    "global_pool",
    "image_size",
    "img_size",
    "in_chans",
    "patch_drop_rate",
    "patch_size",
    "pos_drop_rate",
    "proj_drop_rate",
}
#: Texts that such an option may have.
MODEL_WORDS = ("", "avg", "avgmax", "eager", "map", "max", "sdpa", "token")
