r"""What every closed-form head shares: sufficient statistics in buffers, growth by classes, merging.

A head sees features once, in batches of any size and order, and keeps sums from which its classifier follows
in closed form. Sums are kept in float64, so that a head equals itself after any split or permutation of its
data up to rounding (about 1e-12), and so that two heads which saw two parts of the data can be merged into
the head that saw both. Statistics are buffers: they are in every checkpoint, and they grow with the classes,
so loading resizes them. Scores are computed and returned in float64 as well: with a common offset of 1e4 the
classes of an easy problem differ in digits that float32 does not have.

Labels are class indices 0 to C-1. A class that has no sample yet (a gap in the labels) scores minus infinity.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError

__all__ = ["ClosedFormHead", "LinearHead", "direction"]


def direction(features: Tensor) -> Tensor:
    """Return rows scaled to length one, whatever their scale, [..., d]; a row of zeros stays one.

    >>> direction(torch.tensor([[3e-200, 4e-200]], dtype=torch.float64))
    tensor([[0.6000, 0.8000]], dtype=torch.float64)
    """
    largest = features.abs().amax(dim=-1, keepdim=True)
    scaled = features / torch.where(largest > 0, largest, 1.0)
    return F.normalize(scaled, dim=-1)


class ClosedFormHead(nn.Module, ABC):
    """A classifier over frozen features that is known in closed form from sums over its data.

    A subclass registers its statistics with `add_statistic` and says how to accumulate, merge and score.

    Args:
        width: Number of features, `d`.

    Attributes:
        counts: Samples seen of each class, [C].
    """

    class_axes: ClassVar[dict[str, int]] = {"counts": 0}
    """Which axis of a statistic counts classes; statistics without one have a fixed shape."""

    counts: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"a head needs at least one feature, got width={width}.")
        self.width = width
        self._solution: Any = None
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def add_statistic(self, name: str, *shape: int) -> None:
        """Register a float64 buffer of zeros that belongs to the head's state."""
        self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def num_classes(self) -> int:
        """Number of classes `C`, the seen ones and gaps below the highest of them."""
        return len(self.counts)

    def grow(self, num_classes: int) -> None:
        """Make room for classes up to `num_classes` in every statistic; fewer than now changes nothing."""
        more = num_classes - self.num_classes
        if more <= 0:
            return
        for name, axis in self.class_axes.items():
            old: Tensor = getattr(self, name)
            shape = list(old.shape)
            shape[axis] = more
            setattr(self, name, torch.cat([old, old.new_zeros(shape)], dim=axis))
        self._solution = None

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch.

        Args:
            features: Features of the backbone, [B, d].
            labels: Class indices, [B].

        Raises:
            UserError: If shapes, labels or features are not what the head can use; nothing has changed then.
        """
        self._check_batch(features, labels)
        if len(labels) == 0:
            return
        self.grow(int(labels.max()) + 1)
        self.accumulate(features.double(), labels)
        self.counts = self.counts + torch.bincount(labels, minlength=self.num_classes)
        self._solution = None

    def _check_batch(self, features: Tensor, labels: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.width:
            raise UserError(
                f"the head expects features of shape [B, {self.width}], got {list(features.shape)}; "
                "pool the tokens of the backbone first."
            )
        if labels.shape != features.shape[:1] or labels.is_floating_point():
            raise UserError(
                f"the head expects one integer label per row, got {list(labels.shape)} for "
                f"{len(features)} rows."
            )
        if len(labels) and int(labels.min()) < 0:
            raise UserError(f"labels are class indices from 0, got {int(labels.min())}.")
        if not bool(torch.isfinite(features).all()):
            raise UserError("features hold NaN or infinity; look at the backbone and its inputs.")

    @torch.no_grad()
    def merge(self, other: "ClosedFormHead") -> None:
        """Become the head that saw this head's data and that of `other`, which stays as it is.

        Raises:
            UserError: If `other` is of another class or width.
        """
        if type(other) is not type(self) or other.width != self.width:
            raise UserError(
                f"only heads of one kind and width can be merged, got {type(self).__name__} of width "
                f"{self.width} and {type(other).__name__} of width {other.width}."
            )
        self.grow(other.num_classes)
        self.absorb(other)
        self.counts[: other.num_classes] += other.counts
        self._solution = None

    def end_task(self, features: Tensor, labels: Tensor) -> None:
        """Choose what depends on a task as a whole; nothing unless a subclass says more.

        Args:
            features: All features of the task, [n, d].
            labels: Class indices, [n].
        """

    @abstractmethod
    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Add a checked batch of float64 features [B, d]; `counts` are still those before the batch."""

    @abstractmethod
    def absorb(self, other: Any) -> None:
        """Add the statistics of a head of the same kind; `counts` are still those before."""

    @abstractmethod
    def solve(self) -> Any:
        """Return the classifier that follows from the statistics, in float64."""

    @abstractmethod
    def score(self, features: Tensor, solution: Any) -> Tensor:
        """Return scores [B, C] of float64 features [B, d] under what `solve` returned."""

    @property
    def solution(self) -> Any:
        """What `solve` returned for the statistics as they are; computed once and kept outside the state."""
        if self.num_classes == 0:
            raise UserError("the head has seen no data yet; call update first.")
        if self._solution is None:
            self._solution = self.solve()
        return self._solution

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Return float64 scores of features [B, d], [B, C]; minus infinity for classes without a sample."""
        scores = self.score(features.double(), self.solution)
        return scores.masked_fill(self.counts.to(scores.device) == 0, float("-inf"))

    def statistics_bytes(self) -> int:
        """Return the bytes of the statistics, which a checkpoint holds."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.state_dict().values())

    def class_sums(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums [C, d] and counts [C, 1] per class of a float64 batch."""
        sums = features.new_zeros(self.num_classes, features.shape[1]).index_add_(0, labels, features)
        return sums, torch.bincount(labels, minlength=self.num_classes).unsqueeze(1).double()

    def _apply(self, fn: Any, recurse: bool = True) -> "ClosedFormHead":
        self._solution = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the statistics to the classes of the checkpoint, then load as usual."""
        for name, axis in self.class_axes.items():
            loaded, own = state_dict.get(prefix + name), getattr(self, name)
            if loaded is not None and loaded.ndim == own.ndim:
                shape = list(own.shape)
                shape[axis] = loaded.shape[axis]
                setattr(self, name, own.new_zeros(shape))
        self._solution = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class LinearHead(ClosedFormHead):
    """A head whose scores are linear in a fixed embedding of the features."""

    def embed(self, features: Tensor) -> Tensor:
        """Return what the linear map reads, [B, d']; the features themselves unless a subclass says more."""
        return features

    @abstractmethod
    def solve(self) -> tuple[Tensor, Tensor]:
        """Return weight [C, d'] and bias [C]."""

    def score(self, features: Tensor, solution: tuple[Tensor, Tensor]) -> Tensor:
        """Return `embed(features) W' + b`, [B, C]."""
        weight, bias = solution
        return torch.addmm(bias, self.embed(features), weight.t())
