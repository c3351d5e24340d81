"""Two promises about the frozen base: its batch statistics stay, and a layer that it passes by is told.

An adapter is saved without the base, so a base whose batch norms went on counting would not be the one that
the adapter is loaded onto. And a model that reads a layer's weight itself, instead of calling the layer,
leaves the layer's experts without a gradient: nothing breaks, and nothing is learned there.
"""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moe_adapt.routing.session import with_gradient

__all__ = ["UncalledSites", "hold_statistics"]


def hold_statistics(model: nn.Module) -> None:
    """Keep batch norms without a trained parameter in evaluation mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.training = False


class UncalledSites:
    """Warns once, in the first backward pass, about adapted layers that no forward reached.

    Attributes:
        told: Whether that is done, or somebody else does it.
    """

    def __init__(self) -> None:
        self.told = False

    def watch(self, model: nn.Module, output: Any) -> None:
        """Look at the layers of `model` as soon as its `output` is differentiated."""
        if self.told or not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        for tensor in with_gradient(output):
            tensor.register_hook(lambda _: self._tell(model))

    def _tell(self, model: nn.Module) -> None:
        if self.told:
            return
        self.told = True
        missed = [m.site for m in model.modules() if getattr(m, "was_called", True) is False]
        if missed:
            warnings.warn(
                f"{len(missed)} adapted layers were not reached before the first backward pass "
                f"({', '.join(map(str, missed[:5]))}{', ...' if len(missed) > 5 else ''}), so their experts "
                "learn nothing: the model passes them by or reads their weight directly; leave them out with "
                "exclude_modules.",
                stacklevel=2,
            )
