"""Vectors of images from timm or Hugging Face vision models."""

import sys
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import AutoModel

from moe_adapt.backbones.holder import Encoder
from moe_adapt.backbones.pretrained import DTYPES, Precision, check_loaded, load_pretrained
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.extras import LazyModule
from moe_adapt.reading import foreign

__all__ = ["ImageEncoder", "Library", "classifier_paths", "timm_model"]

timm = LazyModule("timm")

#: Where the backbone comes from.
Library = Literal["timm", "transformers"]


class ImageEncoder(Encoder):
    """A vision model that turns images into one vector each: what its own classifier would read.

    Args:
        backbone: A timm model name, or the name or folder of a Hugging Face model.
        library: Where the backbone comes from.
        checkpoint: File with the weights of a timm backbone (safetensors or pth); None downloads timm's own.
        pretrained: Whether to load weights at all (timm); false starts from random ones, for tests.
        model_kwargs: Arguments of ``timm.create_model`` or ``from_pretrained``, such as ``{"img_size":
            112}``.
        dtype: Precision of the frozen weights.
        layers: How many of the last blocks give features, or their numbers from 1, for heads in closed form;
            None for the model's own features alone.
    """

    def __init__(
        self,
        backbone: str,
        library: Library = "timm",
        checkpoint: str | None = None,
        pretrained: bool = True,
        model_kwargs: dict[str, Any] | None = None,
        dtype: Precision = "float32",
        layers: int | list[int] | None = None,
    ) -> None:
        model: Any
        if library == "transformers":
            model = load_pretrained(AutoModel, backbone, dtype, **(model_kwargs or {})).model
            if getattr(model, "pooler", None) is not None:
                model.pooler = nn.Identity()  # some models call it without asking whether it is there
            width = _width(model)
        else:
            model = timm_model(backbone, 0, checkpoint, pretrained, model_kwargs or {}).to(DTYPES[dtype])
            width = getattr(model, "head_hidden_size", model.num_features)
        super().__init__(model, backbone, width, layers)
        self.library, self.model_kwargs, self.dtype_name = library, model_kwargs or {}, dtype

    def settings(self) -> dict[str, Any]:
        """Return width, library, options of the model and precision."""
        own = {"library": self.library, "model_kwargs": self.model_kwargs, "dtype": self.dtype_name}
        return {**super().settings(), **own}

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return features, float32 [B, d], of ``pixel_values`` [B, 3, H, W]."""
        return self.read(lambda: self._own(batch))

    def _own(self, batch: dict[str, Any]) -> Tensor:
        pixels = batch["pixel_values"].to(DTYPES[self.dtype_name])
        if self.library == "transformers":
            return _pooled(self.model, self.model(pixel_values=pixels).last_hidden_state).float()
        return self.model(pixels).float()


def _pooled(model: Any, state: Tensor) -> Tensor:
    """Return vectors [B, d] of the last state: of the class token, else the mean over tokens or pixels."""
    if state.ndim == 4:
        return state.mean(dim=(2, 3))
    ends = ("cls_token", "class_embedding")
    return state[:, 0] if any(n.endswith(ends) for n, _ in model.named_parameters()) else state.mean(dim=1)


def _width(model: Any) -> int:
    config = getattr(model.config, "vision_config", model.config)
    sizes = [getattr(config, name, None) for name in ("hidden_size", "hidden_sizes", "num_features")]
    found = next((size for size in sizes if size), None)
    if found is None:
        raise UserError(
            f"{type(model).__name__} does not say how wide its features are; take another backbone."
        )
    return found if isinstance(found, int) else found[-1]


def timm_model(
    backbone: str, num_classes: int, checkpoint: str | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Return a timm model with a new classifier, or without one if `num_classes` is 0.

    Raises:
        UserError: If timm has no such model, or the weights do not fit it.
    """
    if not timm.is_model(backbone):
        raise UserError(
            f"timm has no model {backbone!r}.{did_you_mean(backbone.split('.')[0], timm.list_models())} "
            "For a Hugging Face model set library to transformers."
        )
    model = timm.create_model(
        backbone, pretrained=pretrained and checkpoint is None, num_classes=num_classes, **options
    )
    if checkpoint is not None:
        _load_weights(model, Path(checkpoint), classifier_paths(model))
    return model


def classifier_paths(model: nn.Module) -> list[str]:
    """Return the paths of a timm model's classifier."""
    classifier: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    return [classifier] if isinstance(classifier, str) else list(classifier)


def _load_weights(model: nn.Module, path: Path, head: list[str]) -> None:
    """Load all but the head from `path`, converted by timm's own filter for the model's family."""
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; expected a .safetensors or .pth file.")
    with foreign(path, "a file of weights"):
        state = timm.models.load_state_dict(str(path), weights_only=True)
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
