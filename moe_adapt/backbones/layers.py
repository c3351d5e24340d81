"""Features of several blocks of a transformer, side by side.

The last block of a pretrained model is not the one that tells new classes apart best: for a self-supervised
ViT it is one two thirds of the way up, and several blocks together are better than any one (LayUP). A block's
features are the mean of its output over the tokens that count; the last block's are the encoder's own.

Reference: Ahrens et al., LayUP, arXiv 2312.08888 (second-order statistics of several layers).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.tuner.blocks import block_features, block_paths, hidden_of

__all__ = ["BlockReader", "block_numbers"]


def block_numbers(model: nn.Module, layers: int | Sequence[int]) -> list[int]:
    """Return which blocks are read, ascending, from 1 to the number of blocks.

    Args:
        model: A transformer.
        layers: How many of the last blocks, or their numbers.

    Raises:
        UserError: If the model has no such blocks.
    """
    total = len(block_paths(model))
    found = list(range(total - layers + 1, total + 1)) if isinstance(layers, int) else sorted(set(layers))
    if not found or found[0] < 1 or found[-1] > total:
        raise UserError(
            f"layers are numbers of blocks from 1 to {total}, or how many of the last; got {layers}."
        )
    return found


class BlockReader:
    """Reads blocks while the model runs.

    Args:
        model: A transformer without an adapter.
        numbers: Of the blocks, from 1.
    """

    def __init__(self, model: nn.Module, numbers: Sequence[int]) -> None:
        paths = block_paths(model)
        self.last = len(paths)
        self.numbers = list(numbers)
        self.blocks = [model.get_submodule(paths[number - 1]) for number in numbers if number < self.last]

    @contextmanager
    def reading(self) -> Iterator[list[Any]]:
        """Collect the outputs of the blocks below the last one, in their order."""
        outputs: list[Any] = []
        handles = [
            block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in self.blocks
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def join(self, outputs: Sequence[Any], own: Tensor, mask: Tensor | None) -> Tensor:
        """Return the features of all blocks, float32 [B, n d].

        Args:
            outputs: What `reading` collected.
            own: The encoder's own features, [B, d].
            mask: Tokens that count, [B, S]; None counts all.

        Raises:
            UserError: If blocks differ in width, as those of hierarchical models do.
        """
        flags = None if mask is None else mask.bool()
        parts = [block_features(hidden_of(output), flags) for output in outputs]
        if self.numbers[-1] == self.last:
            parts.append(own.float())
        if len({part.shape[1] for part in parts}) > 1 or len(parts) != len(self.numbers):
            raise UserError("layers needs a transformer whose blocks are equally wide and run once each.")
        return torch.cat(parts, dim=1)
