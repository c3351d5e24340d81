"""Text classification with a Hugging Face encoder or decoder.

Two ways to a vector per text: the model's own classification head (``AutoModelForSequenceClassification``),
or the mean of the last hidden states over the real tokens, as sentence-transformers trains its encoders, with
a linear head.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from moe_adapt.backbones.pretrained import Backbone, Precision, load_pretrained
from moe_adapt.backbones.quantize import Quantize
from moe_adapt.backbones.text import Pooling, mean_over_tokens, resolve_pooling
from moe_adapt.training.modules.base import Batch
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["PooledClassifier", "SequenceClassifier"]


class PooledClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the real tokens, and a linear head.

    Args:
        encoder: A transformer with ``last_hidden_state`` [B, S, d] in its output.
        num_classes: How many classes there are, `C`.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        width: int = encoder.config.hidden_size  # type: ignore[union-attr,assignment]
        self.classifier = nn.Linear(width, num_classes, dtype=next(encoder.parameters()).dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Return logits [B, C] of token ids [B, S] under their mask [B, S]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return self.classifier(mean_over_tokens(hidden, attention_mask))

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the encoder's activations in the backward pass."""
        self.encoder.gradient_checkpointing_enable(**options)  # type: ignore[operator]


class SequenceClassifier(Classifier):
    """Classify texts with an adapted Hugging Face model.

    Args:
        backbone: Name on the Hub, or folder, of the pretrained model.
        num_classes: How many classes there are.
        tuner: The adapter; None trains the head only.
        pooling: ``mean`` of the token vectors with a linear head, the ``model``'s own head, or ``auto``: mean
            if the model says so in sentence-transformers' ``1_Pooling/config.json``.
        dtype: Precision of the frozen weights; adapter and head are float32.
        quantize: Hold the frozen linear layers in ``4bit`` or ``8bit`` (needs the extra `quantized`).
        settings: Arguments of `AdaptedModule`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        tuner: RoutedLoraConfig | None = None,
        pooling: Pooling = "auto",
        dtype: Precision = "float32",
        quantize: Quantize | None = None,
        **settings: Any,
    ) -> None:
        built = build(backbone, num_classes, pooling, dtype, quantize)
        super().__init__(backbone=built, name=backbone, num_classes=num_classes, tuner=tuner, **settings)
        self.pooling, self.dtype_name = resolve_pooling(backbone, pooling), dtype
        self.quantize = quantize

    @classmethod
    def base_model(
        cls,
        backbone: str,
        num_classes: int,
        pooling: Pooling = "auto",
        dtype: Precision = "float32",
        quantize: Quantize | None = None,
    ) -> nn.Module:
        """Return the bare model, on which `PeftModel.from_pretrained(model, folder)` puts an adapter."""
        return build(backbone, num_classes, pooling, dtype, quantize).model

    def settings(self) -> dict[str, Any]:
        """Return the settings that shape the model."""
        shaping = {"num_classes": self.num_classes, "pooling": self.pooling, "dtype": self.dtype_name}
        return shaping if self.quantize is None else shaping | {"quantize": self.quantize}

    def logits(self, batch: Batch) -> Tensor:
        """Return class logits, [B, C]."""
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "domain_ids")}
        pad = getattr(self.model.config, "pad_token_id", None)
        if pad is not None:  # by which decoders know their last token; the tokenizer may pad with another
            inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)
        output = self.model(**inputs, **self.for_routers(batch))
        return output if isinstance(output, Tensor) else output.logits


def build(
    backbone: str,
    num_classes: int,
    pooling: Pooling,
    dtype: Precision,
    quantize: Quantize | None = None,
) -> Backbone:
    """Load the pretrained model with a new head; see `SequenceClassifier` for the arguments."""
    if resolve_pooling(backbone, pooling) == "mean":
        encoder: Any = load_pretrained(AutoModel, backbone, dtype, quantize=quantize).model
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # its output would be computed, adapted, and never used
        return Backbone(PooledClassifier(encoder, num_classes), ["classifier"])
    loaded = load_pretrained(
        AutoModelForSequenceClassification,
        backbone,
        dtype,
        new_head=True,
        quantize=quantize,
        num_labels=num_classes,
    )
    config: Any = loaded.model.config
    if config.pad_token_id is None:  # decoders look for the last real token
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return loaded
