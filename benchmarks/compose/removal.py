"""What removing one adapter leaves behind: on its own rows, on those of others, for an attack on membership.

The attack is a threshold on the loss of a row (`moe_adapt.evaluation.membership`): was the adapter trained on
it? Members are the training rows of the adapter's task, others its validation and test rows.
"""

from collections.abc import Sequence
from typing import Any

import peft
import torch
from encoder import Cached
from material import Cell, Material, router
from torch import Tensor

from moe_adapt.evaluation.membership import membership_auc
from moe_adapt.routing.sample import SampleRouter

__all__ = ["membership", "removal"]


def without(lda: SampleRouter, gone: str) -> SampleRouter:
    """Return a router from which an adapter is removed."""
    less = router("lda", {}, 0)
    less.load({name: value for name, value in lda.state().items() if not name.startswith(f"{gone}/")})
    return less


def removal(m: Material, lda: SampleRouter, x: Tensor) -> dict[str, dict[str, float]]:
    """Remove every adapter in turn: what its own rows and those of the others lose."""
    before, found = lda.decide(x).names(), {}
    kept = m.sent(before)
    for gone in m.sources:
        went = without(lda, gone).decide(x).names()
        mine = torch.tensor([task == gone for task in m.tasks])
        moved = torch.tensor([a != b for a, b in zip(before, went, strict=True)])
        right = {"before": kept, "own rows": m.sent(went), "base": m.right["base"]}
        found[gone] = {name: float(answered[mine].float().mean()) for name, answered in right.items()}
        found[gone]["others moved"] = float(moved[~mine].float().mean())
    return found


def membership(m: Material, cell: Cell) -> None:
    """Measure what the attack learns of each adapter, before and after it is removed, and of the base."""
    models = {task: peft.PeftModel.from_pretrained(m.halves.fresh(), own) for task, own in m.sources.items()}
    models["base"] = m.halves.base
    lda = router("lda", m.middle, 320)
    cell["membership"] = {}
    for gone, parts in m.rows.items():
        rows = parts["train"] + parts["validation"] + parts["test"]
        x, members = rows.features(), len(parts["train"])
        ways = {
            "before": lda.decide(x).names(),
            "after": without(lda, gone).decide(x).names(),
            "base": ["base"] * len(rows),
        }
        own = cell["membership"][gone] = {}
        for way, names in ways.items():
            found = losses_by(models, rows, names)
            own[way] = membership_auc(found[:members], found[members:])


@torch.no_grad()
def losses_by(models: dict[str, Any], rows: Cached, names: Sequence[Any]) -> Tensor:
    """Return the loss of every row under the model that it is sent to, [N]."""
    found = torch.zeros(len(rows))
    for name in set(names):
        own = [number for number, to in enumerate(names) if to == name]
        for start in range(0, len(own), 64):
            part = own[start : start + 64]
            found[part] = rows.take(part).losses(models[str(name)].eval())
    return found
