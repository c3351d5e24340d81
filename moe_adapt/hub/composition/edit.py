"""Add an adapter to a composed one, or remove one: exact, in seconds, without the others' texts.

The tensors of the other experts are copied bit for bit; the router combines its statistics anew. Adding and
then removing gives the same decisions and outputs as before, and the order of adding does not matter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.files import exclusively
from moe_adapt.hub.composition.base import open_base, open_tokenizer
from moe_adapt.hub.composition.build import Composer, ComposeReport, check_tokens, write
from moe_adapt.hub.composition.folder import Record, read_folder
from moe_adapt.hub.composition.ingredients import check_together, read_all, without_base_tensors
from moe_adapt.hub.composition.tokens import Example, TokenRouter
from moe_adapt.tuner.peft_plugin import PREFIX
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.sample_tensors import HOLDER, head_name
from moe_adapt.tuner.stock_lora import StockLora

__all__ = ["add_adapter", "composed_loras", "remove_adapter", "router_of", "sample_config"]

_ROOT = "base_model.model."


def add_adapter(
    folder: str | Path,
    adapter: str,
    examples: Sequence[Example],
    *,
    uid: str | None = None,
    backbone: str | None = None,
    base: nn.Module | None = None,
    tokenizer: Any = None,
) -> ComposeReport:
    """Add an adapter to a composed one, in place.

    Args:
        folder: Folder of the composed adapter.
        adapter: The LoRA to add: a folder, or a name on the Hub.
        examples: Texts that it is for, perhaps with labels or responses (see `compose`).
        uid: Its name; None takes the last part of `adapter`.
        backbone: Name or folder of the base model; None takes the one it was composed with.
        base: The base model itself, if it is at hand.
        tokenizer: Its tokeniser; None takes the backbone's.

    Raises:
        UserError: If the name is taken, there are no examples, or the adapter does not fit.
    """
    with exclusively(Path(folder)):
        return _add(Path(folder), adapter, examples, uid, backbone, base, tokenizer)


def _add(
    folder: Path,
    adapter: str,
    examples: Sequence[Example],
    uid: str | None,
    backbone: str | None,
    base: nn.Module | None,
    tokenizer: Any,
) -> ComposeReport:
    config, tensors, router, record = read_folder(folder)
    new = read_all({uid: adapter} if uid else [adapter])
    name = next(iter(new))
    if name in record.experts:
        raise UserError(f"there is an expert {name!r} already; remove it first, or choose another name.")
    by_token = tokens_of(config, tensors, record)
    if router is not None and not list(examples):
        raise UserError(f"the router needs texts that {name!r} is for; give at least one.")
    model = base if base is not None else open_base(_backbone(backbone, record), record.task)
    new = without_base_tensors(new, model)
    check_together(new, model, backbone or record.backbone, record.base_model)
    trains = by_token is not None and by_token.has_gates
    if tokenizer is None and (router is not None or trains):
        tokenizer = open_tokenizer(_backbone(backbone, record))
    ranks = {site: spec["r"] for site, spec in config["sites"].items()}
    loras = composed_loras(config, tensors, record) | new
    composer = Composer(model, tokenizer, dict(sorted(loras.items())), router, record, by_token)
    if router is not None:
        composer.observe_new(name, examples)
    if by_token is not None:
        check_tokens(composer.loras)
    if trains:
        composer.gate(name, examples)
    composer.enter(name, examples)
    record.experts = dict(sorted(record.experts.items()))
    return write(composer, folder, overwrite=True, ranks=ranks)


def remove_adapter(folder: str | Path, uid: str) -> ComposeReport:
    """Remove an expert from a composed adapter, in place. The base model is not needed.

    Args:
        folder: Folder of the composed adapter.
        uid: Name of the expert.

    Raises:
        UserError: If there is no such expert, or it is the last one.
    """
    with exclusively(Path(folder)):
        return _remove(Path(folder), uid)


def _remove(folder: Path, uid: str) -> ComposeReport:
    config, tensors, router, record = read_folder(folder)
    record.check_expert(uid)
    if len(record.experts) == 1:
        raise UserError(f"{uid!r} is the only expert of {folder}; delete the folder instead.")
    loras = composed_loras(config, tensors, record)
    del loras[uid], record.experts[uid]
    if router is not None:
        router.remove(uid)
    ranks = {site: spec["r"] for site, spec in config["sites"].items()}
    by_token = tokens_of(config, tensors, record)
    composer = Composer(_hollow(config, tensors), None, loras, router, record, by_token)
    return write(composer, folder, overwrite=True, ranks=ranks)


def router_of(folder: str | Path) -> str | None:
    """Return the short name of a composed adapter's router; None if experts are chosen by ids alone.

    Raises:
        UserError: If the folder is no composed adapter.
    """
    record = read_folder(Path(folder))[3]
    return None if record.router is None else str(record.router["name"])


def sample_config(config: dict[str, Any], record: Record) -> SampleConfig:
    """Return how a composed adapter routes samples; of one that routes tokens, its experts alone."""
    values = config.get("sample_router")
    return SampleConfig(list(record.experts)) if values is None else SampleConfig.of(values)


def tokens_of(config: dict[str, Any], tensors: dict[str, Tensor], record: Record) -> TokenRouter | None:
    """Return the router over tokens of a composed adapter, with its gates; None if it has none."""
    router = TokenRouter.of(record.router)
    if router is not None:
        router.take(tensors, config["sites"])
    return router


def _backbone(given: str | None, record: Record) -> str:
    name = given or record.backbone
    if name is None:
        raise UserError("it is not known what the adapter was composed on; give the backbone.")
    return name


def composed_loras(
    config: dict[str, Any], tensors: dict[str, Tensor], record: Record
) -> dict[str, StockLora]:
    """Return the experts of a composed adapter as adapters, with the scale 1 and their padded rank."""
    sample = sample_config(config, record)
    found = {}
    for place, uid in enumerate(sample.experts):
        factors = {}
        for site, spec in config["sites"].items():
            if uid in spec["uids"]:
                own = spec["uids"].index(uid)
                a, b = (tensors[f"{_ROOT}{site}.{PREFIX}{part}_frozen"] for part in "AB")
                factors[site] = (a[own], b[:, own])
        head = {
            f"{sample.head}.{name}": tensors[f"{_ROOT}{HOLDER}.{head_name(place, name)}"]
            for name in sample.heads.get(uid, {})
        }
        found[uid] = StockLora(
            uid=uid,
            source=record.experts[uid]["source"],
            base_model=record.base_model,
            factors=factors,
            scales=dict.fromkeys(factors, 1.0),
            head=head,
            head_paths=[sample.head] if sample.head else [],
            task=record.task,
        )
    return found


def _hollow(config: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Return modules with the layers of a composed adapter, without weights, in the adapter's order."""
    root = nn.Module()
    for site in config["sites"]:
        a, b = (tensors[f"{_ROOT}{site}.{PREFIX}{part}_frozen"] for part in "AB")
        *above, name = site.split(".")
        parent = root
        for part in above:
            if not hasattr(parent, part):
                setattr(parent, part, nn.Module())
            parent = getattr(parent, part)
        with torch.device("meta"):
            setattr(parent, name, nn.Linear(a.shape[-1], b.shape[0], bias=False))
    return root
