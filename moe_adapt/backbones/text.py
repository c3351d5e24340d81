"""Vectors of texts: the mean over the real tokens' last hidden states, or that of the first token.

sentence-transformers trains its encoders with the mean and says so in ``1_Pooling/config.json``.
"""

import json
from typing import Any, Literal

from torch import Tensor
from transformers import AutoModel

from moe_adapt.backbones.holder import Encoder
from moe_adapt.backbones.pretrained import Precision, load_pretrained, optional_file

__all__ = ["Pooling", "TextEncoder", "mean_over_tokens", "resolve_pooling"]

#: How a text becomes one vector: ``mean`` over its tokens, what the ``model``'s own head reads, or ``auto``.
Pooling = Literal["auto", "mean", "model"]


def mean_over_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of hidden states [B, S, d] over the tokens of the mask [B, S]; [B, d]."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def resolve_pooling(backbone: str, pooling: Pooling) -> Literal["mean", "model"]:
    """Return how `backbone` pools, looking into sentence-transformers' configuration for ``auto``."""
    if pooling != "auto":
        return pooling
    path = optional_file(backbone, "1_Pooling/config.json")
    mean = path is not None and json.loads(path.read_text()).get("pooling_mode_mean_tokens")
    return "mean" if mean else "model"


class TextEncoder(Encoder):
    """A Hugging Face transformer that turns token ids into one vector per text.

    Args:
        backbone: Name on the Hub, or folder.
        pooling: ``mean`` over the real tokens; ``model``: the first token (encoders); ``auto``: mean if
            the model's folder says so.
        dtype: Precision of the frozen weights.
    """

    def __init__(self, backbone: str, pooling: Pooling = "auto", dtype: Precision = "float32") -> None:
        model: Any = load_pretrained(AutoModel, backbone, dtype).model
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output would be computed, adapted, and never used
        super().__init__(model, backbone, model.config.hidden_size)
        self.pooling = resolve_pooling(backbone, pooling)
        self.dtype_name = dtype

    def settings(self) -> dict[str, Any]:
        """Return width, pooling and precision."""
        return {**super().settings(), "pooling": self.pooling, "dtype": self.dtype_name}

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return features, float32 [B, d], of ``input_ids`` [B, S] under ``attention_mask`` [B, S]."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        hidden = self.model(**inputs).last_hidden_state
        if self.pooling == "mean":
            return mean_over_tokens(hidden, batch["attention_mask"]).float()
        return hidden[:, 0].float()
