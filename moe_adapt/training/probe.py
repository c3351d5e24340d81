r"""The linear probe of a frozen backbone: a head that is right before anything else is trained.

The input of a classifier's last linear layer is collected once over the training rows. On it a multinomial
logistic regression is fitted, a convex problem, by L-BFGS:

$$\min_{W,b}\; \frac1N \sum_i \mathrm{CE}(W z_i + b, y_i) + \frac{\lambda}{2} \lVert W \rVert^2$$

where `z` is the feature, centred and divided by its root mean square; lambda is the best of a short path on
a fifth of the rows. The result is folded back, so that it applies to the features as they are. The nearest
class mean is a linear rule too: the class with the largest $m_c \cdot x - \lVert m_c \rVert^2 / 2$.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.rows import stratified_rows

__all__ = [
    "Features",
    "LinearRule",
    "choose_decay",
    "class_means",
    "collect_features",
    "fit_probe",
    "largest_class",
    "last_linear",
]

#: Weight decays that are tried, from strong to weak; each fit starts where the one before ended.
DECAYS = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)

#: The search for a weight decay takes so many rows that rows x features x classes stays below this.
SEARCH_WORK = 2e8


class Features(NamedTuple):
    """What a classifier's last layer reads.

    Attributes:
        vectors: Inputs of the layer, float32 [N, d].
        labels: Class numbers, [N].
    """

    vectors: Tensor
    labels: Tensor


class LinearRule(NamedTuple):
    """A linear classifier.

    Attributes:
        weight: [C, d].
        bias: [C].
    """

    weight: Tensor
    bias: Tensor

    def accuracy(self, features: Features) -> float:
        """Return the share of rows that it classifies right."""
        scores = features.vectors @ self.weight.to(features.vectors).T + self.bias.to(features.vectors)
        return float((scores.argmax(dim=1) == features.labels).float().mean())


def last_linear(module: nn.Module, num_classes: int) -> str | None:
    """Return the path of the trainable linear layer that gives the class logits; None if there is no such."""
    found = [
        name
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and layer.out_features == num_classes and layer.weight.requires_grad
    ]
    return found[-1] if found else None


def collect_features(
    module: Any,
    batches: Iterable[dict[str, Tensor]],
    path: str,
    limit: int,
    context: AbstractContextManager[Any] | None = None,
) -> Features:
    """Run a classifier in evaluation mode and keep what its last linear layer reads.

    Args:
        module: A `Classifier`.
        batches: Its batches, with ``labels`` [B].
        path: Path of the layer (`last_linear`).
        limit: The most rows.
        context: Entered around all forwards, such as autocast.

    Raises:
        UserError: If the layer's input is not one vector per sample.
    """
    layers = {module.get_submodule(path)}
    frozen = path.replace(".modules_to_save.default", ".original_module")
    if frozen != path:  # what PEFT calls while the adapter is switched off
        layers.add(module.get_submodule(frozen))
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in layers]
    vectors, labels, rows = [], [], 0
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(), context or nullcontext():
            for batch in batches:
                batch = move_data_to_device(batch, module.device)
                seen.clear()
                module.logits(batch)
                vectors.append(_per_sample(seen[-1].detach().float(), batch))
                labels.append(module.checked_labels(batch))
                rows += len(labels[-1])
                if rows >= limit:
                    break
    finally:
        for handle in handles:
            handle.remove()
        module.train(training)
    return Features(torch.cat(vectors)[:limit], torch.cat(labels)[:limit])


def _per_sample(found: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return one vector per sample [B, d]: of a sequence's last real token where a head reads every token."""
    if found.ndim == 2:
        return found
    mask = batch.get("attention_mask")
    if found.ndim != 3 or mask is None:
        raise UserError(
            f"the classifier's last layer reads a tensor of shape {tuple(found.shape)}, from which no linear "
            "probe can be fitted: set head_start.kind to random."
        )
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * places).argmax(dim=1)
    return found[torch.arange(len(found), device=found.device), last]


def largest_class(features: Features, num_classes: int) -> LinearRule:
    """Return the rule that says the most frequent class of every row."""
    counts = torch.bincount(features.labels, minlength=num_classes).to(features.vectors)
    return LinearRule(features.vectors.new_zeros(num_classes, features.vectors.shape[1]), counts)


def class_means(features: Features, num_classes: int) -> LinearRule:
    """Return the nearest class mean as a linear rule; a class without rows is never chosen."""
    chosen = F.one_hot(features.labels, num_classes).to(features.vectors)
    counts = chosen.sum(dim=0)
    means = chosen.T @ features.vectors / counts.clamp(min=1).unsqueeze(1)
    bias = (-0.5 * means.square().sum(dim=1)).masked_fill(counts == 0, float("-inf"))
    return LinearRule(means, bias)


def fit_probe(features: Features, num_classes: int, bias: bool, decay: float) -> LinearRule:
    """Fit the linear probe.

    Args:
        features: The training rows.
        num_classes: How many classes there are, `C`.
        bias: Whether the layer has a bias.
        decay: The weight decay, lambda.

    >>> rows = Features(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    >>> fit_probe(rows, 2, bias=True, decay=0.01).accuracy(rows)
    1.0
    """
    scaled, centre, scale = _scaled(features, bias)
    weight, offset = _logistic(scaled, num_classes, bias, [*(d for d in DECAYS if d > decay), decay])[-1]
    weight = weight / scale
    return LinearRule(weight, offset - weight @ centre)


def choose_decay(features: Features, num_classes: int, bias: bool, seed: int) -> float:
    """Return the weight decay with the lowest loss on a fifth of the rows, taken class by class.

    Args:
        features: The training rows.
        num_classes: How many classes there are, `C`.
        bias: Whether the layer has a bias.
        seed: Fixes the fifth.
    """
    scaled = _scaled(features, bias)[0]
    labels = scaled.labels.cpu().numpy()
    most = max(10 * num_classes, int(SEARCH_WORK / (scaled.vectors.shape[1] * num_classes)))
    rows = stratified_rows(labels, most, seed)
    held = stratified_rows(labels[rows], max(1, len(rows) // 5), seed)
    if len(held) == len(rows):
        return DECAYS[len(DECAYS) // 2]
    fitting, judging = (_chosen(scaled, part) for part in (np.delete(rows, held), rows[held]))
    losses = [
        float(F.cross_entropy(judging.vectors @ weight.T + offset, judging.labels))
        for weight, offset in _logistic(fitting, num_classes, bias, DECAYS)
    ]
    return DECAYS[losses.index(min(losses))]


def _scaled(features: Features, bias: bool) -> tuple[Features, Tensor, float]:
    """Return features with mean zero (if there is a bias) and mean square one, the mean [d] and the scale."""
    x = features.vectors
    centre = x.mean(dim=0) if bias else torch.zeros_like(x[0])
    scale = float((x - centre).square().mean().sqrt().clamp(min=1e-12))
    return Features((x - centre) / scale, features.labels), centre, scale


def _chosen(features: Features, rows: np.ndarray) -> Features:
    taken = torch.from_numpy(rows).to(features.labels.device)
    return Features(features.vectors[taken], features.labels[taken])


def _logistic(
    features: Features, num_classes: int, bias: bool, decays: Iterable[float]
) -> list[tuple[Tensor, Tensor]]:
    """Return weight [C, d] and bias [C] of the regression for each weight decay."""
    x, y = features
    weight = torch.zeros(num_classes, x.shape[1], device=x.device, requires_grad=True)
    offset = torch.zeros(num_classes, device=x.device, requires_grad=bias)
    found = []
    with torch.enable_grad():
        for decay in decays:
            optimizer = torch.optim.LBFGS(
                [weight, offset] if bias else [weight],
                max_iter=60,
                tolerance_grad=1e-5,
                line_search_fn="strong_wolfe",
            )

            def loss(decay: float = decay, optimizer: Any = optimizer) -> Tensor:
                optimizer.zero_grad()
                value = F.cross_entropy(x @ weight.T + offset, y) + decay / 2 * weight.square().sum()
                value.backward()
                return value

            optimizer.step(loss)
            found.append((weight.detach().clone(), offset.detach().clone()))
    return found
