"""Tensors that PEFT saves beside the factors of a LoRA: modules trained whole, and copies of the base's own.

PEFT writes the embeddings beside an adapter where it targets them or where tokens were added
(``save_embedding_layers``), and the modules of ``modules_to_save``. A copy of what the base has changes
nothing and is dropped. What differs belongs to the adapter: it is a head, or no LoRA can carry it. A head is
never dropped: the next base that is opened may have another one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError

if TYPE_CHECKING:
    from moe_adapt.tuner.stock_lora import StockLora

__all__ = ["check_whole", "is_head", "without_copies"]


def without_copies(adapter: "StockLora", base: nn.Module) -> "StockLora":
    """Return an adapter without the tensors that its base has as well.

    Args:
        adapter: The adapter.
        base: The base model.

    Raises:
        UserError: If a tensor that is neither a factor nor part of a head differs from the base's.
    """
    own = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base.named_parameters(remove_duplicate=False)
    }
    for name, tensor in adapter.others.items():
        if not _same(tensor, own.get(name)):
            raise UserError(
                f"the adapter {adapter.source!r} holds {name!r}, which is no LoRA factor of a linear layer "
                "and differs from the base's (were tokens added, or a module trained whole?); such an "
                "adapter cannot become an expert exactly."
            )
    paths = [
        path for path in adapter.head_paths if is_head(base, path) or not _copied(adapter.head, path, own)
    ]
    kept = {name: tensor for name, tensor in adapter.head.items() if _below(name, paths)}
    return replace(adapter, others={}, head=kept, head_paths=paths)


def check_whole(adapter: "StockLora", base: nn.Module, remedy: str = "") -> None:
    """Check that the modules that an adapter has trained whole are classification heads.

    Args:
        adapter: The adapter, without copies of the base's own.
        base: The base model.
        remedy: What else can be done; the end of the message.

    Raises:
        UserError: If one is no head of classes of the base.
    """
    for path in adapter.head_paths:
        if adapter.task not in (None, "SEQ_CLS") or not is_head(base, path):
            raise UserError(
                f"the adapter {adapter.source!r} has trained {path!r} whole (modules_to_save), which is no "
                f"classification head of this {type(base).__name__}; only low-rank factors and such heads "
                f"can become experts{remedy}."
            )


def is_head(base: nn.Module, path: str) -> bool:
    """Return whether a module of the base can be a head: it is there, and maps neither from nor to tokens.

    >>> is_head(nn.ModuleDict({"head": nn.Linear(2, 2)}), "head")
    True
    """
    ends = [getattr(base, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    tokens = [end() for end in ends if end is not None]
    found = dict(base.named_modules()).get(path)
    return found is not None and all(found is not module for module in tokens)


def _copied(head: Mapping[str, Tensor], path: str, own: Mapping[str, Tensor]) -> bool:
    """Return whether all tensors of a module are the base's."""
    return all(_same(tensor, own.get(name)) for name, tensor in head.items() if _below(name, [path]))


def _below(name: str, paths: list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def _same(saved: Tensor, own: Tensor | None) -> bool:
    """Return whether a tensor is the base's, in the type that it was saved in."""
    if own is None or saved.shape != own.shape:
        return False
    return torch.equal(saved, own.detach().to(saved.device, saved.dtype))
