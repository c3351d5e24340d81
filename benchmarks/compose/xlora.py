"""PEFT's X-LoRA over adapters that were trained apart: gates per token, learned from labelled rows.

PEFT looks for an adapter's tensors below a second ``model.``, which plain encoders lack, so their upper half
is put one level deeper; that of the language model has it. The gates read the last hidden states of the base,
as PEFT defines it; adapters stay frozen.
"""

from typing import Any

import peft
import torch
from encoder import Cached, Halves, Settings, UpperHalf, train
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["XLORA_RATES", "learned_mixture"]

#: Learning rates that are tried; the gates alone are trained.
XLORA_RATES = (3e-3, 1e-2, 3e-2, 1e-1)


class Nested(nn.Module):
    """The upper half as the attribute `model`.

    Args:
        half: The upper half.
    """

    def __init__(self, half: UpperHalf) -> None:
        super().__init__()
        self.model, self.config = half, half.config
        self.config.use_cache = False

    def forward(self, **inputs: Any) -> BaseModelOutput:
        """Run the upper half."""
        return self.model(**inputs)


def learned_mixture(halves: Halves, sources: dict[str, str], rows: dict[str, Cached], rate: float) -> Any:
    """Return an X-LoRA model over adapters whose gates are trained on labelled rows of all tasks."""
    torch.manual_seed(0)
    config = peft.XLoraConfig(
        hidden_size=halves.base.config.hidden_size,
        adapters={str(number): source for number, source in enumerate(sources.values())},
    )
    base = halves.fresh()
    model = peft.get_peft_model(base if hasattr(base, "lm_head") else Nested(UpperHalf(base)), config)
    first, *others = rows.values()
    for other in others:
        first = first + other
    train(model, first, Settings(lr=rate, epochs=3, length=32), 0)
    return model
