"""Vectors of texts: the mean over the real tokens' last hidden states, or that of one token.

sentence-transformers trains its encoders with the mean and says so in ``1_Pooling/config.json``. Otherwise it
is the first token of an encoder, and the mean of a decoder, whose first token sees nothing but itself.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModel,
    PreTrainedConfig,
)

from moe_adapt.backbones.holder import Encoder
from moe_adapt.backbones.pretrained import Precision, load_pretrained, optional_file
from moe_adapt.errors import UserError
from moe_adapt.reading import read_json

__all__ = ["Pooling", "TextEncoder", "is_decoder", "last_token", "mean_over_tokens", "resolve_pooling"]

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
    mean = path is not None and read_json(path).get("pooling_mode_mean_tokens")
    return "mean" if mean else "model"


def last_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the hidden state [B, d] of the last token of the mask [B, S], wherever the padding is.

    >>> last_token(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    place = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (place * (attention_mask > 0)).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)]


def is_decoder(config: PreTrainedConfig) -> bool:
    """Return whether the models of a configuration read from left to right only."""
    causal, masked = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING, type(config) in MODEL_FOR_MASKED_LM_MAPPING
    return bool(getattr(config, "is_decoder", False)) or (causal and not masked)


class TextEncoder(Encoder):
    """A Hugging Face transformer that turns token ids into one vector per text.

    Args:
        backbone: Name on the Hub, or folder.
        pooling: ``mean`` over the real tokens; ``model``: the first token of an encoder, the last real one of
            a decoder; ``auto``: mean if the model's folder says so, and for decoders.
        dtype: Precision of the frozen weights.
        layers: How many of the last blocks give features, or their numbers from 1, for heads in closed form;
            None for the last one alone.

    Raises:
        UserError: If the model cannot be loaded, or has an encoder and a decoder, or no such layers.
    """

    def __init__(
        self,
        backbone: str,
        pooling: Pooling = "auto",
        dtype: Precision = "float32",
        layers: int | list[int] | None = None,
    ) -> None:
        model: Any = load_pretrained(AutoModel, backbone, dtype).model
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output would be computed, adapted, and never used
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError(
                f"{backbone!r} has an encoder and a decoder, which give no one vector per text: take "
                "an encoder or a "
                "decoder."
            )
        super().__init__(model, backbone, model.config.hidden_size, layers)
        self.decoder = is_decoder(model.config)
        self.pooling = resolve_pooling(backbone, pooling)
        if pooling == "auto" and self.decoder:
            self.pooling = "mean"
        self.dtype_name = dtype

    def settings(self) -> dict[str, Any]:
        """Return width, pooling and precision."""
        return {**super().settings(), "pooling": self.pooling, "dtype": self.dtype_name}

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return features, float32 [B, d], of ``input_ids`` [B, S] under ``attention_mask`` [B, S]."""
        return self.read(lambda: self._own(batch), batch["attention_mask"])

    def _own(self, batch: dict[str, Any]) -> Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        hidden = self.model(**inputs).last_hidden_state
        if self.pooling == "mean":
            return mean_over_tokens(hidden, batch["attention_mask"]).float()
        if self.decoder:
            return last_token(hidden, batch["attention_mask"]).float()
        return hidden[:, 0].float()
