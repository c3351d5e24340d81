"""The pretrained part of a module: loading, precision, the head trained beside the adapter, memory saving."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import cached_file, logging

from moe_adapt.backbones.quantize import Quantize, keep_weights, loading_options
from moe_adapt.data.hub_access import check_reachable
from moe_adapt.data.packages import local_model
from moe_adapt.errors import UserError

__all__ = [
    "DTYPES",
    "Backbone",
    "Precision",
    "check_loaded",
    "enable_gradient_checkpointing",
    "freeze",
    "keep_in_float32",
    "load_pretrained",
    "optional_file",
    "set_train_mode",
]

#: Precision of the frozen weights.
Precision = Literal["float32", "bfloat16", "float16"]

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Backbone(NamedTuple):
    """A pretrained model and the parts of it that are trained whole.

    Attributes:
        model: The model.
        head: Paths of its submodules that are new or task-specific.
    """

    model: nn.Module
    head: list[str]


def load_pretrained(
    auto: Any,
    name: str,
    dtype: Precision,
    new_head: bool = False,
    quantize: Quantize | None = None,
    **options: Any,
) -> Backbone:
    """Load a Hugging Face model.

    Args:
        auto: An auto class of transformers.
        name: Name on the Hub, or folder.
        dtype: Precision of the weights.
        new_head: Whether what stands outside the shared trunk is a head to train; its weights, and those of a
            pooler, may be missing or of another shape.
        quantize: How to hold the linear layers of the trunk; None for `dtype`.
        options: Arguments of ``from_pretrained``.

    Raises:
        UserError: If the model cannot be found, or its files lack weights other than those of the head.
    """
    where = local_model(name)
    check_reachable(where)
    try:
        options |= loading_options(auto, where, quantize, DTYPES[dtype], options)
        with _quiet():
            model, info = auto.from_pretrained(
                where, dtype=DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the backbone {name!r}: {str(error).splitlines()[0]}") from error
    keep_weights(model)
    lacking = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    head = _head(model, lacking) if new_head else []
    check_loaded(name, lacking, head)
    return Backbone(model, head)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush the report of missing weights, which `check_loaded` replaces, and bars that no terminal shows."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _head(model: Any, lacking: Iterable[str]) -> list[str]:
    trunk = model.base_model_prefix
    head = [
        name
        for name, child in model.named_children()
        if name != trunk and any(True for _ in child.parameters())
    ]
    poolers = {key.rpartition(".")[0] for key in lacking if "pooler" in key.split(".")}
    return head + sorted(pooler for pooler in poolers if pooler.split(".")[0] not in head)


def optional_file(name: str, file: str) -> Path | None:
    """Return the path of a file of a Hugging Face model, None if the model has no such file.

    Raises:
        UserError: If the model cannot be found.
    """
    try:
        path = cached_file(
            local_model(name),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError as error:
        raise UserError(f"cannot load the backbone {name!r}: {str(error).splitlines()[0]}") from error
    return None if path is None else Path(path)


def check_loaded(name: str, lacking: Iterable[str], head: list[str]) -> None:
    """Check that a pretrained file lacked nothing but the head.

    Args:
        name: The file, for the message.
        lacking: Names of parameters that it lacked, or had in another shape.
        head: Paths of the head's modules.

    Raises:
        UserError: If more was lacking: the frozen base would be random there.
    """
    random = sorted(key for key in lacking if not any(key.startswith(f"{path}.") for path in head))
    if random:
        raise UserError(
            f"{name!r} does not fit this model: {len(random)} frozen weights are missing from it or have "
            f"another shape ({', '.join(random[:3])}{', ...' if len(random) > 3 else ''})."
        )


def _cast_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def keep_in_float32(backbone: Backbone) -> None:
    """Hold the head of a half-precision backbone in float32: steps of 1e-4 are lost in bfloat16 weights."""
    for path in backbone.head:
        head = backbone.model.get_submodule(path)
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in head.parameters()):
            head.float().register_forward_pre_hook(_cast_inputs)


def freeze(backbone: Backbone) -> None:
    """Make the head trainable and nothing else."""
    backbone.model.requires_grad_(False)
    for path in backbone.head:
        backbone.model.get_submodule(path).requires_grad_(True)


def set_train_mode(model: nn.Module, mode: bool, probing: bool) -> None:
    """Set training mode, except where it would change or disturb a frozen base.

    Args:
        model: The model.
        mode: Whether to train.
        probing: Whether only the head is trained; then the base stays in evaluation mode (no dropout).
    """
    model.train(mode)
    for module in model.modules():
        frozen = not any(p.requires_grad for p in module.parameters())
        if frozen and (probing or isinstance(module, _BatchNorm)):
            module.training = False


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass (non-reentrant), in the way the model's library offers.

    Raises:
        UserError: If the model offers none.
    """
    if hasattr(model, "gradient_checkpointing_enable"):
        options = {"use_reentrant": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[operator]
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    else:
        raise UserError(f"{type(model).__name__} does not offer gradient checkpointing; set it to false.")
