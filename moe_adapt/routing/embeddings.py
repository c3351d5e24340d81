"""The token embeddings of a model, whatever is around it: a head, a pooling, an adapter."""

from typing import Any

from torch import Tensor, nn

__all__ = ["token_embeddings"]


def token_embeddings(model: nn.Module) -> Any:
    """Return the layer that embeds token ids, or None if the model has none.

    The first part of the model that names its input embeddings decides; those of images are passed by.

    Args:
        model: The model, or modules around it.
    """
    for part in model.modules():
        find = getattr(part, "get_input_embeddings", None)
        try:
            layer = None if find is None else find()
        except NotImplementedError:
            continue
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            return layer
    return None
