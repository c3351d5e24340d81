"""What holds a pretrained model for a learner: the model, its name, its adapter.

Everything pretrained is in `Pretrained.model`, so that a checkpoint can leave it out. An `Encoder` turns a
batch into one vector per sample; learners put heads on these vectors.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
from torch import Tensor, nn

from moe_adapt.backbones.layers import BlockReader, block_numbers
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel

__all__ = ["Encoder", "Pretrained"]


class Pretrained(nn.Module):
    """A pretrained model, frozen until somebody says otherwise.

    Args:
        model: The pretrained model.
        name: Name or folder of it, written into results and adapters.

    Attributes:
        model: The pretrained model; the PEFT model once `adapt` was called.
        adapted: Whether the model has an adapter.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.name = name
        self.adapted = False

    def settings(self) -> dict[str, Any]:
        """Return what shapes the model beside the pretrained weights, as JSON types."""
        return {"holder": type(self).__name__}

    def to_dict(self) -> dict[str, Any]:
        """Return the name, without the folders above it, and the settings, as JSON types."""
        return {"name": Path(self.name).name, **self.settings()}

    def adapt(self, config: RoutedLoraConfig) -> None:
        """Put an adapter into the model; only its parameters are trainable afterwards."""
        self.model.name_or_path = self.name  # type: ignore[assignment]
        self.model = peft.get_peft_model(self.model, copy.deepcopy(config))
        self.adapted = True

    @property
    def tuner(self) -> RoutedLoraModel | None:
        """The tuner, which holds losses and statistics of the routers; None without an adapter."""
        return self.model.base_model if self.adapted else None  # type: ignore[return-value]


class Encoder(Pretrained, ABC):
    """A pretrained model without a head.

    Args:
        model: The pretrained model.
        name: Name or folder of it.
        width: Features per sample and layer.
        layers: How many of the last blocks give features, or their numbers from 1; None for the model's own
            features alone.

    Attributes:
        width: Features per sample, `d`, of all layers together.
        num_layers: How many layers give features, equally many each, in their order.

    Raises:
        UserError: If the model has no such blocks.
    """

    def __init__(
        self, model: nn.Module, name: str, width: int, layers: int | Sequence[int] | None = None
    ) -> None:
        super().__init__(model, name)
        numbers = None if layers is None else block_numbers(model, layers)
        self.reader = None if numbers is None else BlockReader(model, numbers)
        self.layers = numbers
        self.num_layers = 1 if numbers is None else len(numbers)
        self.width = self.num_layers * width

    def read(self, run: Callable[[], Tensor], mask: Tensor | None = None) -> Tensor:
        """Return the features of the layers, [B, d], of one run of the model.

        Args:
            run: Runs the model and returns its own features.
            mask: Tokens that count, [B, S]; None counts all.
        """
        if self.reader is None:
            return run()
        with self.reader.reading() as outputs:
            own = run()
        return self.reader.join(outputs, own, mask)

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return features, float32 [B, d], of a batch of samples."""

    def settings(self) -> dict[str, Any]:
        """Return the kind of encoder, its width, and its layers if they are not the usual one."""
        layers = {} if self.layers is None else {"layers": self.layers}
        return {**super().settings(), "width": self.width, **layers}
