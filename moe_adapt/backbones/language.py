"""A causal language model from the Hub, held for a learner."""

from typing import Any

from transformers import AutoModelForCausalLM

from moe_adapt.backbones.holder import Pretrained
from moe_adapt.backbones.pretrained import Precision, load_pretrained

__all__ = ["LanguageModel"]


class LanguageModel(Pretrained):
    """A causal language model.

    Args:
        backbone: Name on the Hub, or folder.
        dtype: Precision of the frozen weights.
    """

    def __init__(self, backbone: str, dtype: Precision = "float32") -> None:
        super().__init__(load_pretrained(AutoModelForCausalLM, backbone, dtype).model, backbone)
        self.dtype_name = dtype

    def settings(self) -> dict[str, Any]:
        """Return the precision."""
        return {**super().settings(), "dtype": self.dtype_name}

    def forward(self, batch: dict[str, Any]) -> Any:
        """Return the model's output (``loss`` if the batch has ``labels`` [B, S], ``logits`` [B, S, V])."""
        keys = ("input_ids", "attention_mask", "labels")
        return self.model(**{key: batch[key] for key in keys if key in batch})
