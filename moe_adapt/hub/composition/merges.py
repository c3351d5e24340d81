"""What people do today: merge adapters into one, by PEFT's own `add_weighted_adapter`.

Every way of merging gets its weight from validation rows: the best of a few, by mean accuracy over the tasks.
Adapters with heads of their own cannot be merged, since their heads cannot.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor, nn

from moe_adapt.hub.composition.ingredients import stack_site
from moe_adapt.tuner.stock_lora import StockLora

__all__ = ["KINDS", "Merged", "best_merges", "merge_model", "weigh"]

#: PEFT's combination types that are compared.
KINDS = ("linear", "cat", "ties", "dare_ties")

#: Weights of every adapter that are tried, as multiples of 1 / E.
FACTORS = (1.0, 2.0, 4.0)
_DENSITY = 0.5


class Merged(NamedTuple):
    """The best merge of one kind.

    Attributes:
        kind: PEFT's combination type.
        weight: Weight of every adapter.
        validation: Mean accuracy on validation rows.
        model: The model; its active adapter is the merge.
    """

    kind: str
    weight: float
    validation: float
    model: Any


def merge_model(base: nn.Module, loras: Mapping[str, StockLora]) -> tuple[Any, list[str]]:
    """Return a copy of the base with all adapters as PEFT's own, at one rank and scale, and their names."""
    sites = sorted({site for lora in loras.values() for site in lora.factors})
    rank = max(len(a) for lora in loras.values() for a, _ in lora.factors.values())
    names = [f"expert{number}" for number in range(len(loras))]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=sites)
    model: Any = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=sites))
    for site in sites:
        layer = model.base_model.model.get_submodule(site)
        own, a, b = stack_site(loras, site, rank)
        for name, uid in zip(names, loras, strict=True):
            layer.lora_B[name].weight.data.zero_()
            if uid in own:
                layer.lora_A[name].weight.data.copy_(a[own.index(uid)])
                layer.lora_B[name].weight.data.copy_(b[:, own.index(uid)])
    return model.eval().requires_grad_(False), names


def weigh(model: Any, names: Sequence[str], kind: str, weight: float) -> None:
    """Merge the adapters of `merge_model` into the adapter ``merged``, and make it the active one.

    Args:
        model: The model.
        names: Names of its adapters.
        kind: One of `KINDS`.
        weight: Weight of every adapter.
    """
    torch.manual_seed(0)  # dare drops at random
    options = {"density": _DENSITY} if "ties" in kind or "dare" in kind else {}
    model.add_weighted_adapter(list(names), [weight] * len(names), "merged", combination_type=kind, **options)
    model.set_adapter("merged")


def best_merges(
    base: nn.Module, loras: Mapping[str, StockLora], validate: Callable[[Any], float]
) -> Iterator[Merged]:
    """Yield the best merge of every kind; use it before asking for the next.

    Args:
        base: The base model.
        loras: The adapters.
        validate: Returns the mean accuracy of a model on validation rows.
    """
    model, names = merge_model(base, loras)
    for kind in KINDS:
        tried: dict[float, float] = {}
        for factor in FACTORS:
            weight = factor / len(names)
            weigh(model, names, kind, weight)
            tried[weight] = validate(model)
            model.set_adapter(names[0])
            model.delete_adapter("merged")
        best = max(tried, key=lambda weight: tried[weight])
        weigh(model, names, kind, best)
        yield Merged(kind, best, tried[best], model)
        model.set_adapter(names[0])
        model.delete_adapter("merged")


def mean_accuracy(right: Mapping[str, Tensor]) -> float:
    """Return the mean over tasks of the share of right answers."""
    return sum(float(answers.float().mean()) for answers in right.values()) / len(right)
