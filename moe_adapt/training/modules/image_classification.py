"""Image classification with a timm or Hugging Face backbone."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from moe_adapt.backbones.image import Library, classifier_paths, timm_model
from moe_adapt.backbones.pretrained import DTYPES, Backbone, Precision, load_pretrained
from moe_adapt.errors import UserError
from moe_adapt.training.modules.base import Batch
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["ImageClassifier"]


class ImageClassifier(Classifier):
    """Classify images with an adapted vision model.

    Args:
        backbone: A timm model name, or the name or folder of a Hugging Face model.
        num_classes: How many classes there are.
        tuner: The adapter; None trains the head only.
        library: Where the backbone comes from.
        checkpoint: File with the weights of a timm backbone (safetensors or pth); None downloads timm's own.
        pretrained: Whether to load weights at all (timm); false starts from random ones, for tests.
        model_kwargs: Arguments of ``timm.create_model`` or ``from_pretrained``, such as ``{"img_size":
            112}``.
        dtype: Precision of the frozen weights; adapter and head are float32.
        settings: Arguments of `AdaptedModule`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        tuner: RoutedLoraConfig | None = None,
        library: Library = "timm",
        checkpoint: str | None = None,
        pretrained: bool = True,
        model_kwargs: dict[str, Any] | None = None,
        dtype: Precision = "float32",
        **settings: Any,
    ) -> None:
        built = build(backbone, num_classes, library, checkpoint, pretrained, model_kwargs, dtype)
        super().__init__(backbone=built, name=backbone, num_classes=num_classes, tuner=tuner, **settings)
        self.library, self.model_kwargs, self.dtype_name = library, model_kwargs or {}, dtype

    @classmethod
    def base_model(
        cls,
        backbone: str,
        num_classes: int,
        library: Library = "timm",
        checkpoint: str | None = None,
        pretrained: bool = True,
        model_kwargs: dict[str, Any] | None = None,
        dtype: Precision = "float32",
    ) -> nn.Module:
        """Return the bare model, on which `PeftModel.from_pretrained(model, folder)` puts an adapter."""
        return build(backbone, num_classes, library, checkpoint, pretrained, model_kwargs, dtype).model

    def settings(self) -> dict[str, Any]:
        """Return the settings that shape the model."""
        return {
            "num_classes": self.num_classes,
            "library": self.library,
            "model_kwargs": self.model_kwargs,
            "dtype": self.dtype_name,
        }

    def logits(self, batch: Batch) -> Tensor:
        """Return class logits, [B, C]."""
        if self.library == "timm":
            return self.model(batch["pixel_values"])
        return self.model(pixel_values=batch["pixel_values"]).logits


def build(
    backbone: str,
    num_classes: int,
    library: Library,
    checkpoint: str | None,
    pretrained: bool,
    model_kwargs: dict[str, Any] | None,
    dtype: Precision,
) -> Backbone:
    """Load the pretrained model with a new head; see `ImageClassifier` for the arguments."""
    options = model_kwargs or {}
    if library == "transformers":
        if checkpoint is not None:
            raise UserError("checkpoint is for timm models; give a Hugging Face model's folder as backbone.")
        return load_pretrained(
            AutoModelForImageClassification, backbone, dtype, True, num_labels=num_classes, **options
        )
    model = timm_model(backbone, num_classes, checkpoint, pretrained, options)
    return Backbone(model.to(DTYPES[dtype]), classifier_paths(model))
