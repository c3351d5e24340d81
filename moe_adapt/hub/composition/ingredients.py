"""The adapters that are composed: read, compared with each other and with the base, stacked as experts.

Every adapter's own scale is folded into its up-projection, so that a bank has the scale 1 and an expert's
tensors do not depend on what stands beside it. Smaller ranks are filled up with zeros. Both are exact.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import pad_rank
from moe_adapt.tuner.peft_plugin import is_supported_layer, layer_shape
from moe_adapt.tuner.saved_whole import check_whole, without_copies
from moe_adapt.tuner.stock_lora import StockLora, check_base, read_lora

__all__ = [
    "check_together",
    "head_of",
    "linear_shapes",
    "read_all",
    "stack_site",
    "task_of",
    "without_base_tensors",
]


def read_all(adapters: Sequence[str] | Mapping[str, str]) -> dict[str, StockLora]:
    """Read adapters, by name, in the order of the names.

    Args:
        adapters: Folders or names on the Hub; a mapping gives the experts' names.

    Raises:
        UserError: If one cannot be used, names repeat or cannot be used.
    """
    pairs = list(adapters.items()) if isinstance(adapters, Mapping) else [(None, a) for a in adapters]
    read = [read_lora(str(source), uid) for uid, source in pairs]
    names = [lora.uid for lora in read]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two adapters are called {name!r}; name them yourself: NAME=FOLDER (a mapping in Python)."
            )
        if not name or "/" in name or name == "__base__":
            raise UserError(f"an expert's name is not empty, has no slash and is not __base__, got {name!r}.")
    if not read:
        raise UserError("there is no adapter to compose; give at least one.")
    return {lora.uid: lora for lora in sorted(read, key=lambda lora: lora.uid)}


def without_base_tensors(loras: Mapping[str, StockLora], base: nn.Module) -> dict[str, StockLora]:
    """Return the adapters with what is their own: factors, and heads of classes.

    Args:
        loras: The adapters.
        base: The base model.

    Raises:
        UserError: If one has trained a module whole that is no head of the base.
    """
    kept = {uid: without_copies(lora, base) for uid, lora in loras.items()}
    for lora in kept.values():
        check_whole(lora, base)
    return kept


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return in- and out-features of a model's linear layers by path."""
    return {
        name.removesuffix(".base_layer"): layer_shape(module)
        for name, module in model.named_modules()
        if is_supported_layer(module)
    }


def check_together(
    loras: Mapping[str, StockLora], base: nn.Module, backbone: str | None, known_base: str | None = None
) -> str | None:
    """Check that adapters belong to one base model, and return what they call it.

    Args:
        loras: The adapters.
        base: The base model.
        backbone: What it was opened by. The name of a local folder proves nothing; layers are compared.
        known_base: What experts that are there already call it.

    Raises:
        UserError: If they do not fit together, or not the base.
    """
    bases = {uid: lora.base_model for uid, lora in loras.items() if lora.base_model}
    if known_base:
        bases = {"the composed adapter": known_base, **bases}
    first = next(iter(bases.values()), None)
    for uid, name in bases.items():
        if Path(str(name)).name != Path(str(first)).name:
            raise UserError(
                f"adapters of different base models cannot be composed: {next(iter(bases))} is for "
                f"{first!r}, {uid} for {name!r}."
            )
    asked = None if backbone is None or Path(backbone).expanduser().exists() else backbone
    shapes = linear_shapes(base)
    for lora in loras.values():
        check_base(lora, shapes, asked)
    tasks = {lora.task for lora in loras.values() if lora.task}
    if len(tasks) > 1:
        raise UserError(
            f"the adapters are for different kinds of task ({', '.join(sorted(tasks))}); compose those of "
            "one kind."
        )
    return first or asked


def task_of(loras: Mapping[str, StockLora]) -> str | None:
    """Return PEFT's name of the adapters' task; None if none says it."""
    found = next((lora.task for lora in loras.values() if lora.task), None)
    return found or ("SEQ_CLS" if any(lora.head for lora in loras.values()) else None)


def head_of(loras: Mapping[str, StockLora]) -> str:
    """Return the path of the head that every adapter brings; empty if none does.

    Raises:
        UserError: If some have a head and others none, or theirs are at different places.
    """
    paths = {tuple(lora.head_paths) for lora in loras.values()}
    if paths == {()}:
        return ""
    if len(paths) > 1 or len(next(iter(paths))) > 1:
        listed = ", ".join(f"{uid}: {' and '.join(lora.head_paths) or 'none'}" for uid, lora in loras.items())
        raise UserError(
            f"every adapter must bring one trained head at the same place, or none at all ({listed}); an "
            "expert without a head could not answer beside those with one."
        )
    return next(iter(paths))[0]


def head_tensors(lora: StockLora, path: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter's head by their names in it."""
    return {name.removeprefix(f"{path}."): tensor for name, tensor in lora.head.items()}


def stack_site(loras: Mapping[str, StockLora], site: str, rank: int | None = None) -> tuple[Any, Any, Any]:
    """Return names, `A` [E, r, d] and `B` [o, E, r] of the experts that a layer has.

    Args:
        loras: The adapters, in the order of their names.
        site: Path of the layer.
        rank: Rank to fill up to; None takes the largest.
    """
    own = {uid: lora for uid, lora in loras.items() if site in lora.factors}
    rank = max([rank or 0, *(len(lora.factors[site][0]) for lora in own.values())])
    padded = []
    for lora in own.values():
        a, b = (factor.float() for factor in lora.factors[site])
        padded.append(pad_rank(a, b * lora.scales[site], rank))
    return list(own), torch.stack([a for a, _ in padded]), torch.stack([b for _, b in padded], dim=1)
