"""Texts as a pool's router sees them: an encoder's final embedding, or a middle block of a base model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_adapt.backbones import TextEncoder
from moe_adapt.data.tokenizer import pad_on_the_right
from moe_adapt.hub.composition.base import longest, open_base, open_tokenizer, text_features, token_batches
from moe_adapt.tuner.blocks import block_paths

__all__ = ["Embedder", "middle_block"]


def middle_block(backbone: str) -> int:
    """Return after how many blocks of a base model half of them have run."""
    return max(1, (len(block_paths(open_base(backbone, None))) + 1) // 2)


class Embedder:
    """Embeds texts; the model is opened once.

    Args:
        encoder: Name or folder of the model.
        block: After how many blocks texts are embedded; None takes the encoder's own embedding.
    """

    def __init__(self, encoder: str, block: int | None = None) -> None:
        self.block = block
        if block is None:
            self.model: Any = TextEncoder(encoder).eval()
            self.tokenizer: Any = open_tokenizer(encoder)
            pad_on_the_right(self.tokenizer, encoder)
            self.longest = longest(self.tokenizer, self.model.model)
        else:
            self.model, self.tokenizer = open_base(encoder, None), open_tokenizer(encoder)
            self.longest = longest(self.tokenizer, self.model)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, [Q, d]."""
        if self.block is not None:
            found = text_features(self.model, self.tokenizer, texts, self.longest, [self.block])
            return found[self.block].clone()
        rows: list[Any] = [None] * len(texts)
        for numbers, batch in token_batches(self.tokenizer, texts, self.longest):
            for number, row in zip(numbers, self.model(batch), strict=True):
                rows[number] = row
        return torch.stack(rows).clone()
