"""Image classification with a timm or Hugging Face backbone."""

import sys
from pathlib import Path
from typing import Any, Literal

import timm
from timm.models import load_state_dict
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.training.modules.backbone import DTYPES, Backbone, Precision, check_loaded, load_pretrained
from moe_adapt.training.modules.base import Batch
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["ImageClassifier", "Library"]

#: Where the backbone comes from.
Library = Literal["timm", "transformers"]


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
    if not timm.is_model(backbone):
        raise UserError(
            f"timm has no model {backbone!r}.{did_you_mean(backbone.split('.')[0], timm.list_models())} "
            "For a Hugging Face model set library to transformers."
        )
    model: Any = timm.create_model(
        backbone, pretrained=pretrained and checkpoint is None, num_classes=num_classes, **options
    )
    classifier = model.pretrained_cfg["classifier"]
    head = [classifier] if isinstance(classifier, str) else list(classifier)
    if checkpoint is not None:
        _load_weights(model, Path(checkpoint), head)
    return Backbone(model.to(DTYPES[dtype]), head)


def _load_weights(model: nn.Module, path: Path, head: list[str]) -> None:
    """Load all but the head from `path`, converted by timm's own filter for the model's family."""
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; expected a .safetensors or .pth file.")
    state = load_state_dict(str(path))
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(state, model)
    own = model.state_dict()
    fitting = {name: t for name, t in state.items() if name in own and own[name].shape == t.shape}
    fitting = {
        name: t for name, t in fitting.items() if not any(name.startswith(f"{path}.") for path in head)
    }
    model.load_state_dict(fitting, strict=False)
    check_loaded(str(path), own.keys() - fitting.keys(), head)
