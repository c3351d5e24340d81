"""The words of PEFT's LoRA in our configuration: taken where they mean the same, explained otherwise."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from moe_adapt.errors import UserError, did_you_mean

__all__ = ["understands_lora"]

C = TypeVar("C", bound=type)


class UnknownOption(UserError, TypeError):
    """An option that does not exist; PEFT drops it with a warning where it reads a newer version's file."""


#: Options of `peft.LoraConfig` that are ours by another name.
_SAME = {"lora_alpha": "alpha", "lora_dropout": "dropout", "init_lora_weights": "init_weights"}
#: What to write instead of others.
_INSTEAD = {
    "rank_pattern": "give r a mapping: r={'q_proj': 16, 'default': 8}",
    "alpha_pattern": "give alpha a mapping: alpha={'q_proj': 32, 'default': 16}",
    "use_dora": "experts are plain LoRA; DoRA's magnitudes have no mixture",
    "fan_in_fan_out": "leave it out: layouts are found by themselves",
    "target_parameters": "fused experts of a MoE base get LoRA by target_modules='moe'",
    "lora_bias": "experts have no bias",
    "modules_to_tie": "name the modules in modules_to_save",
    "loftq_config": "quantise the base first; experts start at B = 0",
    "eva_config": "experts start at B = 0 with random A",
    "corda_config": "experts start at B = 0 with random A",
    "arrow_config": "take method='arrow' with experts_from",
    "layer_replication": "replicate the layers of the base model itself",
}


def _translated(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by our names.

    Raises:
        UserError: For an option that has none, or that is given by both names.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        own = _SAME.get(name, name)
        if own in found or (own != name and own in options):
            raise UserError(f"{name} and {own} are the same option; give one of them.")
        if name == "init_lora_weights" and not isinstance(value, bool):
            raise UserError(
                f"init_lora_weights={value!r} is not supported: experts start at B = 0 (init_weights=True) "
                "or with a random B (False)."
            )
        if own not in known:
            instead = _INSTEAD.get(name)
            hint = f": {instead}." if instead else f".{did_you_mean(name, known)}"
            raise UnknownOption(f"RoutedLoraConfig got an unexpected keyword argument {name!r}{hint}")
        found[own] = value
    return found


def understands_lora(cls: C) -> C:
    """Let the constructor of a configuration take LoRA's words; a class decorator."""
    plain = cls.__init__  # type: ignore[misc]
    known = inspect.signature(plain).parameters

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **_translated(options, known))

    cls.__init__ = __init__  # type: ignore[misc]
    return cls
