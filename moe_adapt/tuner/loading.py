"""A strict check of loaded adapter tensors.

PEFT only warns when a file lacks tensors of an adapter, and the layers keep their random initial values. The
hook here turns that, and tensors that fit no layer, into an error.
"""

from typing import Any

from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.tuner.peft_plugin import PREFIX

__all__ = ["check_loaded_keys", "is_adapter_key"]


def is_adapter_key(key: str) -> bool:
    """Return whether a state-dict key belongs to a routed-LoRA adapter."""
    return any(part.startswith(PREFIX) for part in key.split("."))


def check_loaded_keys(module: nn.Module, incompatible_keys: Any) -> None:
    """Raise `UserError` if a state dict holds an adapter in part, or tensors that no layer takes.

    An adapter of which nothing was loaded is left alone: a model may hold several. To be registered with
    `register_load_state_dict_post_hook`.

    Args:
        module: The model that was loaded.
        incompatible_keys: What `load_state_dict` reports, with `missing_keys` and `unexpected_keys`.
    """
    unexpected = [key for key in incompatible_keys.unexpected_keys if is_adapter_key(key)]
    if unexpected:
        raise UserError(
            f"the file holds {len(unexpected)} adapter tensors that fit no layer of this model, such as "
            f"{unexpected[0]!r}; it was made for another base model or configuration."
        )
    missing: dict[str, list[str]] = {}
    for key in incompatible_keys.missing_keys:
        if is_adapter_key(key):
            missing.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    expected: dict[str, int] = {}
    for key in module.state_dict():
        if is_adapter_key(key):
            adapter = key.rsplit(".", 1)[-1]
            expected[adapter] = expected.get(adapter, 0) + 1
    for adapter, keys in missing.items():
        if len(keys) < expected.get(adapter, 0):
            raise UserError(
                f"the file lacks {len(keys)} of the {expected[adapter]} tensors of the adapter {adapter!r}, "
                f"such as {keys[0]!r}; it is incomplete, or was made for another base model."
            )
