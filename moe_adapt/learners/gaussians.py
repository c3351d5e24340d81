r"""A Gaussian per class in feature space, and the alignment of a classifier on samples drawn from them.

After a task is learned, the heads of older classes have not seen its features. SLCA keeps mean and covariance
of every class, draws features of all classes alike, and trains the heads on them:

$$f \sim \mathcal{N}(k_c\, \mu_c,\ S_c + 10^{-4} I), \qquad k_c = 0.9 + 0.1\,\frac{t_c + 1}{T}$$

with `t_c` the class's task, so that the newest classes are not shrunk. Covariances are the memory of the
method; three forms are offered, bytes per class in float32: ``full`` 4 d^2, ``low_rank`` 4 d (q + 1), whose
diagonal is exact, ``diagonal`` 4 d.

Reference: Zhang et al., SLCA, arXiv 2303.05118.
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.learners.growth import grow_rows

__all__ = ["ClassGaussians", "Covariance", "align_cosine_heads", "mean_scale"]

#: How the covariance of a class is kept.
Covariance = Literal["full", "diagonal", "low_rank"]


def mean_scale(task_of_class: Tensor, tasks: int) -> Tensor:
    """Return the factor on the mean of each class, [C].

    >>> mean_scale(torch.tensor([0, 1]), tasks=2)
    tensor([0.9500, 1.0000])
    """
    return 0.9 + 0.1 * (task_of_class + 1) / tasks


class ClassGaussians(nn.Module):
    """Mean and covariance of every class.

    Args:
        width: Number of features, `d`.
        covariance: How covariances are kept.
        rank: Directions kept by ``low_rank``, `q`.
        ridge: Added to the diagonal.

    Attributes:
        mean: [C, d].
        spread: [C, d, d], [C, d] or [C, d, q]; covariances, variances, or scaled directions.
        rest: Variances beside the directions of ``low_rank``, [C, d]; empty otherwise.
    """

    mean: Tensor
    spread: Tensor
    rest: Tensor
    kinds: ClassVar[tuple[str, ...]] = ("full", "diagonal", "low_rank")

    def __init__(
        self, width: int, covariance: Covariance = "full", rank: int = 16, ridge: float = 1e-4
    ) -> None:
        super().__init__()
        if covariance not in self.kinds:
            raise UserError(f"covariance is one of {', '.join(self.kinds)}, got {covariance!r}.")
        if covariance == "low_rank" and not 1 <= rank <= width:
            raise UserError(f"the rank of a covariance lies between 1 and {width}, got {rank}.")
        self.covariance: Covariance = covariance
        self.rank = rank
        self.ridge = ridge
        shape = {"full": (width, width), "diagonal": (width,), "low_rank": (width, rank)}[covariance]
        self.register_buffer("mean", torch.zeros(0, width))
        self.register_buffer("spread", torch.zeros(0, *shape))
        self.register_buffer("rest", torch.zeros(0, width if covariance == "low_rank" else 0))
        self._forget_factors()

    def _forget_factors(self) -> None:
        self._factors = self.spread.new_empty(0)
        self._stale: set[int] = set(range(self.num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes, `C`."""
        return len(self.mean)

    def grow(self, num_classes: int) -> None:
        """Make room for classes up to `num_classes`."""
        known = self.num_classes
        for name in ("mean", "spread", "rest"):
            setattr(self, name, grow_rows(getattr(self, name), num_classes))
        self._stale.update(range(known, num_classes))

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Set mean and covariance of the classes in `labels` from all their features.

        Args:
            features: Features of the classes, [n, d].
            labels: Class numbers, [n]; a class of one sample gets the covariance zero.
        """
        for label in labels.unique().tolist():
            rows = features[labels == label].double()
            self.mean[label] = rows.mean(dim=0)
            centred = (rows - rows.mean(dim=0)) / max(len(rows) - 1, 1) ** 0.5
            if self.covariance == "full":
                self.spread[label] = centred.T @ centred
            elif self.covariance == "diagonal":
                self.spread[label] = centred.square().sum(dim=0)
            else:
                self._fit_directions(label, centred)
            self._stale.add(label)

    def _fit_directions(self, label: int, centred: Tensor) -> None:
        _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
        kept = min(self.rank, len(sizes))
        scaled = directions[:kept].T * sizes[:kept]
        self.spread[label] = F.pad(scaled, (0, self.rank - kept))
        variances = centred.square().sum(dim=0)
        self.rest[label] = (variances - scaled.square().sum(dim=1)).clamp(min=0)

    def factors(self) -> Tensor:
        """Return Cholesky factors of the full covariances, [C, d, d]; computed once per change of a class."""
        eye = torch.eye(self.mean.shape[1], dtype=torch.float64, device=self.mean.device)
        if len(self._factors) < self.num_classes:
            self._factors = grow_rows(self._factors.reshape(-1, *self.spread.shape[1:]), self.num_classes)
        for index in sorted(self._stale):
            regular = self.spread[index].double() + self.ridge * eye
            self._factors[index] = torch.linalg.cholesky(regular)
        self._stale.clear()
        return self._factors

    def sample(self, count: int, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw features of every class, [C, count, d].

        Args:
            count: Samples per class.
            scale: Factor on the mean of each class, [C].
            generator: Source of randomness, on the CPU.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.mean)

        classes, width = self.mean.shape
        centre = (self.mean * scale.to(self.mean).unsqueeze(1)).unsqueeze(1)
        if self.covariance == "full":
            return centre + normal(classes, count, width) @ self.factors().transpose(1, 2)
        if self.covariance == "diagonal":
            return centre + normal(classes, count, width) * (self.spread + self.ridge).sqrt().unsqueeze(1)
        own = normal(classes, count, width) * (self.rest + self.ridge).sqrt().unsqueeze(1)
        return centre + own + normal(classes, count, self.rank) @ self.spread.transpose(1, 2)

    def statistics_bytes(self) -> int:
        """Return the bytes of means and covariances."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def _apply(self, fn: Any, recurse: bool = True) -> "ClassGaussians":
        result = super()._apply(fn, recurse)
        self._forget_factors()
        return result

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._forget_factors()


def align_cosine_heads(
    heads: Tensor,
    gaussians: ClassGaussians,
    scale: Tensor,
    epochs: int,
    lr: float,
    samples_per_class: int,
    temperature: float = 20.0,
    weight_decay: float = 5e-4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return cosine heads trained on drawn features of all classes alike, [C, d].

    SGD with momentum 0.9 and a cosine schedule over all epochs; in an epoch, `samples_per_class` features of
    every class are drawn, shuffled, and cut into as many batches as there are classes.

    Args:
        heads: The heads as they are, [C, d].
        gaussians: What to draw from.
        scale: Factor on the mean of each class, [C].
        epochs: Epochs.
        lr: Learning rate at the start.
        samples_per_class: Features per class and epoch.
        temperature: Factor on the cosines, tau.
        weight_decay: Weight decay.
        generator: Source of randomness, on the CPU.
    """
    weight = heads.detach().clone()
    velocity = torch.zeros_like(weight)
    classes = len(heads)
    labels = torch.arange(classes, device=heads.device).repeat_interleave(samples_per_class)
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        drawn = F.normalize(gaussians.sample(samples_per_class, scale, generator).flatten(0, 1), dim=-1)
        order = torch.randperm(len(labels), generator=generator).to(heads.device)
        for part in order.split(samples_per_class):
            from_cosines, from_lengths = _cosine_gradient(weight, drawn[part], labels[part], temperature)
            velocity.addmm_(from_cosines.T, drawn[part], beta=0.9)
            velocity.addcmul_(weight, (weight_decay - from_lengths).unsqueeze(1))
            weight.sub_(velocity, alpha=rate)
    return weight


def _cosine_gradient(
    weight: Tensor, features: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    r"""Return the parts `P` [B, C] and `q` [C] of a gradient by the heads, `P^T F - q W`.

    With $c = F \hat W^T$ the cosines and $G$ the gradient of the loss by them, $P = G / \lVert w \rVert$ and
    $q = \sum_b G\, c / \lVert w \rVert^2$. A step of an alignment reads the heads of all classes, so passes
    over [C, d] are what it costs, and autograd makes more of them (2.4 times as slow with 300 classes of 384
    numbers, 3.7 times with 1,500).
    """
    lengths = weight.norm(dim=1).clamp_min(1e-12)
    cosines = (features @ weight.T) / lengths
    gradient = (temperature * cosines).softmax(dim=1)
    gradient[torch.arange(len(labels), device=labels.device), labels] -= 1
    gradient *= temperature / len(labels)
    return gradient / lengths, (gradient * cosines).sum(dim=0) / lengths.square()
