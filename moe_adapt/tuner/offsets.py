r"""Another routing without another weight: a constant per expert and layer, added to the logits for a while.

$$z'_{te} = z_{te} + o_e \qquad \text{with } o \in \mathbb{R}^E \text{ of each layer}$$

`routing_offsets` adds given offsets while a block runs; afterwards everything is as before, and no weight was
touched at any time. Two ways to get offsets:

* `fit_offsets` minimises a loss by gradient steps on the offsets alone, such as the next-token loss of the
  prompt (test-time rewiring). Zero steps are no offsets.
* `steering_offsets` scales the contrast of two traces: towards the experts that the first text uses more.

Rate, share of layers and sign of the rewiring paper could not be verified: Adam, all layers and the prompt's
own loss are ours, and so is the strength of steering.

Reference: "Rewiring Experts on the Fly" (notes); "Multilingual Routing in Mixture-of-Experts" (notes).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.tuner.layer import RoutedLoraLayer, adapted_layers
from moe_adapt.tuner.model import RoutedLoraModel

__all__ = ["fit_offsets", "routing_offsets", "steering_offsets"]


@contextmanager
def routing_offsets(
    tuner: RoutedLoraModel, offsets: Mapping[str, Tensor], adapter_name: str | None = None
) -> Iterator[None]:
    """Add offsets to the logits of some sites while the block runs.

    Args:
        tuner: The tuner.
        offsets: What to add, [E], by the site's path; other sites stay as they are.
        adapter_name: Name of the adapter; None takes the active one.

    Raises:
        UserError: If a site does not exist or has another number of experts, or the adapter routes samples.
    """
    adapter, layers = _layers(tuner, adapter_name)
    for site, offset in offsets.items():
        if site not in layers:
            raise UserError(f"there is no adapted layer {site!r} to steer.")
        count = layers[site].specs[adapter].num_experts
        if tuple(offset.shape) != (count,):
            raise UserError(
                f"{site} has {count} experts, but its offsets have the shape {tuple(offset.shape)}."
            )
    session = tuner.hooks.session
    before = session.offsets
    session.offsets = {**before, **{(adapter, site): offset for site, offset in offsets.items()}}
    try:
        yield
    finally:
        session.offsets = before


def fit_offsets(
    tuner: RoutedLoraModel,
    loss: Callable[[], Tensor],
    steps: int,
    lr: float = 0.1,
    penalty: float = 0.0,
    adapter_name: str | None = None,
) -> dict[str, Tensor]:
    """Return offsets that lower a loss, found by steps of Adam from zero; weights get no gradient.

    Args:
        tuner: The tuner.
        loss: Runs the model and returns a scalar.
        steps: Number of steps; 0 returns zeros.
        lr: Size of a step, in units of logits.
        penalty: Times the mean square of the offsets, added to the loss. Higher: stays nearer to the router.
        adapter_name: Name of the adapter; None takes the active one.

    Raises:
        UserError: For a negative number of steps, a loss that is not finite, or one that the offsets do not
            reach.
    """
    if steps < 0 or lr <= 0 or penalty < 0:
        raise UserError(f"steps and penalty are 0 or more and lr is above 0, got {steps}, {penalty}, {lr}.")
    adapter, layers = _layers(tuner, adapter_name)
    offsets = {
        site: torch.zeros(
            layer.specs[adapter].num_experts, device=layer.bank(adapter).a.device, requires_grad=True
        )
        for site, layer in layers.items()
    }
    free = list(offsets.values())
    values = sum(offset.numel() for offset in free)
    optimizer = torch.optim.Adam(free, lr=lr)
    trained = [parameter for parameter in tuner.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        for _ in range(steps):
            with torch.enable_grad(), routing_offsets(tuner, offsets, adapter):
                value = loss()
            _check_loss(value)
            found = torch.autograd.grad(value, free, allow_unused=True) if value.requires_grad else []
            if all(gradient is None for gradient in found):
                raise UserError("the loss does not depend on the routing, so there is nothing to fit.")
            for offset, gradient in zip(free, found, strict=True):
                pull = 2 * penalty / values * offset.detach()
                offset.grad = pull if gradient is None else gradient + pull
            optimizer.step()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return {site: offset.detach() for site, offset in offsets.items()}


def steering_offsets(
    contrast: Mapping[str, Tensor], strength: float, sites: int | None = None
) -> dict[str, Tensor]:
    """Return offsets towards the experts that a contrast favours.

    Args:
        contrast: Log-ratio of the loads, [E], by site (`moe_adapt.evaluation.trace.contrast`).
        strength: Times the log-ratio. 0 changes nothing; below 0 steers away.
        sites: Steer the sites alone whose contrast is largest, so many; None steers all.

    Raises:
        UserError: If `sites` is below 1.

    >>> steering_offsets({"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([0.1, 0.0])}, 0.5, sites=1)
    {'a': tensor([ 0.5000, -0.5000])}
    """
    if sites is not None and sites < 1:
        raise UserError(f"at least one site is steered, got {sites}.")
    order = sorted(contrast, key=lambda site: -float(contrast[site].abs().max()))
    chosen = set(order if sites is None else order[:sites])
    return {site: (strength * own).float() for site, own in contrast.items() if site in chosen}


def _check_loss(value: Tensor) -> None:
    if value.ndim or not torch.isfinite(value):
        raise UserError(f"offsets are fitted to a scalar loss that is finite, got {value.detach().tolist()}.")


def _layers(tuner: RoutedLoraModel, adapter_name: str | None) -> tuple[str, dict[str, RoutedLoraLayer]]:
    adapter = adapter_name or tuner.active_adapters[0]
    layers = {layer.site: layer for layer in adapted_layers(tuner.model) if adapter in layer.specs}
    if any(layer.by_sample[adapter] for layer in layers.values()):
        raise UserError("the adapter routes whole samples; offsets are for routers of tokens.")
    return adapter, layers
