"""How useful each expert is to the loss: scores from gradients over batches of a run's data."""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from moe_adapt.errors import UserError
from moe_adapt.experts.utility import GradientScore, gradient_utility
from moe_adapt.training.modules.base import AdaptedModule
from moe_adapt.tuner.layer import adapted_layers

__all__ = ["expert_utility"]


def expert_utility(
    module: AdaptedModule, batches: Iterable[Any], score: GradientScore, limit: int = 50
) -> dict[str, torch.Tensor]:
    """Return a score of each expert, float64 [E], by the path of its site.

    The gradient is the mean over batches of the task loss's, without dropout. The second moment is the mean
    of its square over the same batches, since a checkpoint need not hold an optimizer.

    Args:
        module: The module, with its tuner.
        batches: Batches as the data modules of this package give them.
        score: Which score (`moe_adapt.experts.utility`).
        limit: The most batches.

    Raises:
        UserError: If there is no batch, the module has no tuner, or it has frozen experts, which have no
            gradient.
    """
    tuner = module.tuner
    if tuner is None:
        raise UserError("the run trained no adapter, so there are no experts to score.")
    adapter = tuner.active_adapters[0]
    layers = [layer for layer in adapted_layers(tuner.model) if adapter in layer.specs]
    held = next((layer.site for layer in layers if layer.frozen_experts(adapter)), None)
    if held is not None:
        raise UserError(f"{held} has frozen experts, which have no gradient; choose by use or norm instead.")
    factors = {
        (layer.site, dim): getattr(layer, name)[adapter].requires_grad_()
        for layer in layers
        for dim, name in enumerate(("moe_adapt_A", "moe_adapt_B"))
    }
    sums = {key: torch.zeros_like(factor) for key, factor in factors.items()}
    squares = {key: torch.zeros_like(factor) for key, factor in factors.items()}
    module.eval()
    count = 0
    for batch in itertools.islice(batches, limit):
        loss = module.task_loss(move_data_to_device(batch, module.device))
        found = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
        for key, gradient in zip(factors, found, strict=True):
            if gradient is not None:
                sums[key] += gradient
                squares[key] += gradient.square()
        count += 1
    if not count:
        raise UserError("there were no batches to score the experts on.")
    scores: dict[str, torch.Tensor] = {}
    for layer in layers:
        spec = layer.specs[adapter]
        parts = []
        for dim in range(2):
            key = (layer.site, dim)
            mean, moment = sums[key] / count, squares[key] / count
            parts.append(gradient_utility(score, factors[key].detach(), mean, moment, dim))
        scores[layer.site] = parts[0].expand(spec.num_experts) + parts[1]
    return scores
