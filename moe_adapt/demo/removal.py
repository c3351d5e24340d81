"""What happens to every row when an adapter is removed, bit by bit.

Rows are read in the same batches before and after, so that outputs can be compared to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.hub.composition.base import open_base, open_tokenizer, token_batches

__all__ = ["Readings", "Removal", "accuracy_by_desk", "judge_removal", "read"]


@dataclass(frozen=True)
class Readings:
    """What a composed adapter makes of texts.

    Attributes:
        outputs: Last hidden states of each text's tokens, [S, d].
        base: Those of the base alone.
        routes: Which expert answered each; None for the base.
        probe: The first batch: input ids, mask and the outputs for it.
    """

    outputs: list[Tensor]
    base: list[Tensor]
    routes: list[str | None]
    probe: dict[str, Tensor]


@dataclass(frozen=True)
class Removal:
    """What a removal did.

    Attributes:
        removed: Name of the expert.
        own_rows: Texts of its own that it answered before.
        to_base: Those of them that the base answers now, each equal to the base to the last bit.
        to_others: Those that look like another expert's and are answered by it.
        kept_rows: Texts of the other desks whose expert is the same as before, each equal to the last bit.
        moved_rows: Texts of the other desks that are answered by another one, or by the base.
    """

    removed: str
    own_rows: int
    to_base: int
    to_others: int
    kept_rows: int
    moved_rows: int

    def __str__(self) -> str:
        return (
            f"{self.removed} is removed: {self.kept_rows} rows of the other desks go where they went and are "
            f"equal to the last bit, {self.moved_rows} go elsewhere; of the {self.own_rows} rows it answered "
            f"for its own desk the base answers {self.to_base}, equal to the base alone to the last bit, and "
            f"other adapters {self.to_others}"
        )


@torch.no_grad()
def read(adapter: Path, backbone: str, texts: Sequence[str], max_length: int) -> Readings:
    """Return what a composed adapter makes of texts.

    Args:
        adapter: Its folder.
        backbone: Folder of the base model.
        texts: The texts.
        max_length: Tokens read of each.
    """
    tokenizer = open_tokenizer(backbone)
    model: Any = PeftModel.from_pretrained(open_base(backbone, None), str(adapter)).eval()
    outputs: list[Any] = [None] * len(texts)
    base: list[Any] = [None] * len(texts)
    routes: list[str | None] = [None] * len(texts)
    probe: dict[str, Tensor] = {}
    for numbers, batch in token_batches(tokenizer, texts, max_length):
        hidden = model(**batch).last_hidden_state
        names = model.base_model.sample_routes().names()
        with model.disable_adapter():
            plain = model(**batch).last_hidden_state
        probe = probe or {**batch, "outputs": hidden.clone()}
        for place, number in enumerate(numbers):
            real = batch["attention_mask"][place].bool()
            outputs[number], base[number] = hidden[place, real], plain[place, real]
            routes[number] = names[place]
    return Readings(outputs, base, routes, probe)


def judge_removal(before: Readings, after: Readings, owners: Sequence[str], removed: str) -> Removal:
    """Compare readings before and after a removal.

    Args:
        before: With the expert.
        after: Without it, of the same texts.
        owners: Desk of each text.
        removed: Name of the expert.

    Raises:
        UserError: If a row that goes where it went is not equal to the last bit, or one that fell to the base
            differs from the base.
    """
    kept = moved = own = fallen = 0
    for number, owner in enumerate(owners):
        was, now = before.routes[number], after.routes[number]
        if was == now and not torch.equal(before.outputs[number], after.outputs[number]):
            raise UserError(f"row {number} of {owner} goes to {now or 'the base'} as before, but differs.")
        if now is None and not torch.equal(after.outputs[number], after.base[number]):
            raise UserError(f"row {number} of {owner} is left to the base, but differs from it.")
        if owner != removed:
            kept += was == now
            moved += was != now
        elif was == removed:
            own += 1
            fallen += now is None
    return Removal(removed, own, fallen, own - fallen, kept, moved)


def accuracy_by_desk(
    outputs: Sequence[Tensor], owners: Sequence[str], labels: Sequence[str], words: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the share of right answers of every desk.

    Args:
        outputs: Last hidden states of each text's tokens, [S, d].
        owners: Desk of each text.
        labels: The right word for each text.
        words: The base's embedding of every word, [d] each.
    """
    names, table = list(words), torch.stack(list(words.values()))
    found: dict[str, list[bool]] = {}
    for states, owner, label in zip(outputs, owners, labels, strict=True):
        best = names[int((table @ states.mean(dim=0)).argmax())]
        found.setdefault(owner, []).append(best == label)
    return {owner: sum(right) / len(right) for owner, right in found.items()}
