"""Which layers of a base model get experts, and how many: target names and per-site values.

Targets are given as in PEFT (a list of name endings, a regular expression, `"all-linear"`) or as a group,
`"ffn"` or `"attention"`, that covers the naming schemes of the common architectures, or as `"all-conv"`,
every 2-D convolution without groups. A name that matches nothing is an error that lists near names: a
mistyped layer must not be skipped in silence.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.experts.conv import is_supported_convolution
from moe_adapt.tuner.peft_plugin import (
    AuxiliaryTrainingWrapper,
    BaseTunerLayer,
    default_target_modules,
    is_supported_layer,
)

__all__ = ["TARGET_GROUPS", "resolve_targets", "site_depth", "site_value", "weights_read_past"]

T = TypeVar("T", int, float)

_FFN = (
    r"gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|c_fc|mlp\.c_proj|intermediate\.dense|"
    r"(?<!attention\.)output\.dense|wi|wi_0|wi_1|wo|lin1|lin2|dense_h_to_4h|dense_4h_to_h|w1|w2|w3|"
    r"weights_in|weights_out|mlp\.ln[12]\.linear|conv_pwl?|pw_exp\.conv|pw_proj\.conv"
)
_ATTENTION = (
    r"q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|query|key|value|attention\.output\.dense|qkv|attn\.proj|"
    r"c_attn|attn\.c_proj|q_lin|k_lin|v_lin|out_lin|query_key_value|SelfAttention\.[qkvo]|"
    r"attn(_downsample)?\.(q|kv|qkv|proj)(\.ln)?\.linear"
)

#: Regular expressions (full match on the path of a layer) behind the names of target groups.
TARGET_GROUPS: dict[str, str] = {
    "ffn": rf".*\.({_FFN})",
    "attention": rf".*\.({_ATTENTION})",
    "moe": r".*\.(mlp|block_sparse_moe|feed_forward)\.(gate|router|experts)",
}

#: Projections that fused state-space kernels read past the module: an adapter there would do nothing.
_BYPASSED = {
    model_type: {"out_proj", "conv1d"}
    for model_type in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
}


def _linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in _own_modules(model) if is_supported_layer(module)]


def _own_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers of the base model by their paths there, also if other adapters are on it."""
    wrapped: list[str] = []
    found = []
    for name, module in model.named_modules():
        owner = next((path for path in wrapped if name.startswith(f"{path}.")), None)
        if owner is not None:
            if name == f"{owner}.base_layer":
                found.append((owner, module))
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            wrapped.append(name)
        else:
            found.append((name, module))
    return found


def _convolution_names(model: nn.Module) -> list[str]:
    return [name for name, module in _own_modules(model) if is_supported_convolution(module)]


def _listing(model: nn.Module) -> str:
    convolutions = len(_convolution_names(model))
    endings = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in _linear_names(model)})
    shown = ", ".join(endings[:20]) + (", ..." if len(endings) > 20 else "")
    text = f"Its linear layers end in: {shown}." if endings else "It has no linear layers."
    return text + (f" 'all-conv' adapts its {convolutions} convolutions." if convolutions else "")


def weights_read_past(model: nn.Module) -> set[str]:
    """Return projections whose weight the model reads past the module, so that an adapter does nothing.

    timm's attention of BEiT, EVA and Swin V2 does so to put its separate biases of queries and values
    together.
    """
    return {
        f"{name}.qkv".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(getattr(module, "q_bias", None), nn.Parameter)
        and isinstance(getattr(module, "qkv", None), nn.Linear)
        and not getattr(module, "qkv_bias_separate", False)
    }


def _head_names(model: nn.Module, modules_to_save: Sequence[str]) -> set[str]:
    heads = set(modules_to_save)
    if hasattr(model, "get_output_embeddings"):
        output = model.get_output_embeddings()  # type: ignore[operator]
        heads.update(name for name, module in model.named_modules() if module is output)
    return heads


def resolve_targets(
    targets: Sequence[str] | str | None,
    model: nn.Module,
    model_type: str | None,
    modules_to_save: Sequence[str] = (),
    layers: Sequence[int] | int | None = None,
    layers_pattern: Sequence[str] | str | None = None,
) -> list[str] | str:
    """Return targets in PEFT's form (a regular expression, or a list of name endings) for a base model.

    Args:
        targets: What the configuration says; None takes PEFT's LoRA defaults for the architecture.
        model: The base model.
        model_type: Its transformers architecture name, if it has one.
        modules_to_save: Names of modules that are trained whole and get no experts.
        layers: Numbers of the blocks to adapt, for groups; None for all. PEFT cuts lists of names itself.
        layers_pattern: Names of the lists of blocks that `layers` counts; None for any.

    Raises:
        UserError: If a name, group or expression matches no layer, or names a layer that fused kernels
            bypass.
    """
    linears = _linear_names(model)
    every = [name for name, _ in model.named_modules() if name]
    if targets is None:
        targets = default_target_modules(model_type) if model_type else None
        if targets is None:
            raise UserError(
                f"{model_type or type(model).__name__!r} has no default layers. "
                "Please specify `target_modules`: name the layers, or say 'ffn', 'attention', 'all-linear' "
                f"or 'all-conv'. {_listing(model)}"
            )
    unread = weights_read_past(model)
    if targets in ("all-linear", "all-conv"):
        heads = _head_names(model, modules_to_save)
        names = linears if targets == "all-linear" else _convolution_names(model)
        kept = [
            name
            for name in names
            if name not in unread and not any(name == head or f".{head}." in f".{name}." for head in heads)
        ]
        if not kept:
            raise UserError(f"target_modules={targets!r} finds nothing to adapt. {_listing(model)}")
        targets = _of_blocks(kept, layers, layers_pattern)
    elif isinstance(targets, str):
        expression = TARGET_GROUPS.get(targets, targets)
        if not any(re.fullmatch(expression, name) for name in every):
            raise UserError(
                f"target_modules={targets!r} matches no layer of {type(model).__name__}. {_listing(model)}"
            )
        known = targets in TARGET_GROUPS and any(re.fullmatch(expression, name) for name in unread)
        if targets in TARGET_GROUPS and (known or layers is not None):
            matched = [name for name in every if re.fullmatch(expression, name) and name not in unread]
            targets = _of_blocks(matched, layers, layers_pattern)
        else:
            targets = expression
    else:
        targets = list(targets)
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in every):
                endings = {name.rsplit(".", 1)[-1] for name in linears}
                raise UserError(
                    f"the target module {target!r} is not in {type(model).__name__}."
                    f"{did_you_mean(target, endings)} {_listing(model)}"
                )
    _refuse_bypassed(targets, every, model_type)
    return targets


def _of_blocks(
    names: Sequence[str], layers: Sequence[int] | int | None, pattern: Sequence[str] | str | None
) -> list[str]:
    """Return the layers of some blocks.

    Raises:
        UserError: If there is none.
    """
    if layers is None:
        return list(names)
    numbers = {layers} if isinstance(layers, int) else set(layers)
    lists = [pattern] if isinstance(pattern, str) else list(pattern or ())
    of = "|".join(re.escape(name) for name in lists) or r"[^.]+"
    kept = []
    for name in names:
        found = re.search(rf"(?:^|\.)(?:{of})\.(\d+)\.", name)
        if found and int(found.group(1)) in numbers:
            kept.append(name)
    if not kept:
        raise UserError(
            f"layers_to_transform={layers!r} leaves no layer to adapt; the blocks of this model are numbered "
            f"{sorted({depth for name in names if (depth := site_depth(name)) is not None})}."
        )
    return kept


def _refuse_bypassed(targets: Sequence[str] | str, names: Sequence[str], model_type: str | None) -> None:
    for ending in sorted(_BYPASSED.get(model_type or "", ())):
        for name in names:
            if name.rsplit(".", 1)[-1] != ending:
                continue
            hit = (
                re.fullmatch(targets, name)
                if isinstance(targets, str)
                else any(name == target or name.endswith(f".{target}") for target in targets)
            )
            if hit:
                raise UserError(
                    f"the layer {name!r} of a {model_type} model cannot be adapted: fused kernels read its "
                    "weight directly and would skip the experts; remove it from target_modules (in_proj and "
                    "x_proj work)."
                )


def site_depth(site: str) -> int | None:
    """Return the index of the block that a layer belongs to (the first number in its path), or None.

    >>> site_depth("model.layers.11.mlp.up_proj")
    11
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site)
    return int(found.group(1)) if found else None


def site_value(value: T | Sequence[T] | Mapping[str, T], site: str, depths: int, field: str) -> T:
    """Return the value of a per-site option for one layer.

    Args:
        value: A number for all sites; a list spread evenly over the depth of the model (``[2, 4, 6, 8]``: a
            quarter of the blocks each); or a mapping from regular expressions searched in the path to values,
            tried in order, with an optional key ``default``.
        site: Path of the layer.
        depths: Number of blocks of the model.
        field: Name of the option, for messages.

    Raises:
        UserError: If a list meets a layer outside the numbered blocks, or no pattern of a mapping fits.

    >>> site_value([2, 4], "layers.5.fc1", depths=6, field="num_experts")
    4
    """
    if isinstance(value, Mapping):
        for pattern, number in value.items():
            if pattern != "default" and re.search(pattern, site):
                return number
        if "default" in value:
            return value["default"]
        raise UserError(
            f"{field}: no pattern of {dict(value)!r} fits the layer {site!r}; add the key 'default'."
        )
    if isinstance(value, Sequence):
        depth = site_depth(site)
        if depth is None or not value:
            raise UserError(
                f"{field}={list(value)!r} is a list over the depth of the model, but the layer {site!r} is "
                "in no numbered block; give a number or a mapping of patterns."
            )
        return value[min(depth * len(value) // max(depths, 1), len(value) - 1)]
    return value


def option_list(value: Any) -> list[Any]:
    """Return every number that a per-site option mentions."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, Sequence) else [value]
