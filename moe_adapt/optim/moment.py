r"""Running second moment of a layer's inputs, task by task, without centring.

$$C^t = \frac{1}{n_1 + \dots + n_t} \sum_{s \le t} \sum_{x \in s} x x^T$$

The sum and the count are kept apart for finished tasks (``past``) and the one under way, so that the mean
over any split, order or set of processes is the same. Rows may have weights: they count that many times. Up
to `max_exact` inputs the sum is exact in fp32; wider layers keep a Frequent-Directions sketch.

The paper's released code replaces the statistic by a centred sketch of one batch; this follows the paper's
equation 3 (SAME, arXiv 2602.01990).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from moe_adapt.errors import UserError
from moe_adapt.optim.sketch import FrequentDirections
from moe_adapt.optim.spectrum import Spectrum
from moe_adapt.processes import process, processes, sum_over_processes

__all__ = ["InputMoment", "Period"]

#: Finished tasks, the task under way, or both.
Period = Literal["past", "current", "all"]


class InputMoment(nn.Module):
    """Uncentred second moment of the rows that `observe` gets.

    Args:
        width: Width of the rows, `d`.
        max_exact: Widest rows for which the [d, d] sum is kept.
        sketch_rank: Directions of the sketch used above that.
    """

    count: Tensor
    past_count: Tensor
    total: Tensor
    past_total: Tensor
    energy: Tensor
    past_energy: Tensor

    def __init__(self, width: int, max_exact: int = 4096, sketch_rank: int = 256) -> None:
        super().__init__()
        self.width = width
        self.exact = width <= max_exact
        for name in ("count", "past_count", "energy", "past_energy"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        if self.exact:
            self.register_buffer("total", torch.zeros(width, width))
            self.register_buffer("past_total", torch.zeros(width, width))
        else:
            self.sketch = FrequentDirections(width, sketch_rank)
            self.past_sketch = FrequentDirections(width, sketch_rank)

    @torch.no_grad()
    def observe(self, rows: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add rows of the task under way.

        Args:
            rows: Inputs, [N, d], padding left out.
            weight: How many times each row counts, for all or [N].
        """
        rows = rows.float()
        weights = torch.as_tensor(weight, dtype=torch.float32, device=rows.device).expand(len(rows))
        scaled = rows * weights[:, None] if isinstance(weight, Tensor) or weight != 1.0 else rows
        if self.exact:
            self.total.addmm_(scaled.t(), rows)
        else:
            self.sketch.update(rows * weights.sqrt()[:, None])
        self.count += weights.sum(dtype=torch.float64)
        self.energy += (scaled * rows).sum(dtype=torch.float64)

    @torch.no_grad()
    def end_task(self) -> None:
        """Make the task under way a finished one; in distributed training all processes' sums are added."""
        self._reduce()
        self.past_count += self.count
        self.past_energy += self.energy
        if self.exact:
            self.past_total += self.total
        else:
            self.past_sketch.update(self.sketch.content())
        self._clear()

    @contextmanager
    def summed(self) -> Iterator[None]:
        """Hold the sums of all processes while the block reads them; the first one keeps them afterwards."""
        self._reduce()
        try:
            yield
        finally:
            if process():
                self._clear()

    def _clear(self) -> None:
        self.count.zero_()
        self.energy.zero_()
        if self.exact:
            self.total.zero_()
        else:
            self.sketch.clear()

    def _reduce(self) -> None:
        sum_over_processes(self.count, self.energy, *([self.total] if self.exact else []))
        if not self.exact and processes() > 1:
            pieces: list[Tensor | None] = [None] * processes()
            distributed.all_gather_object(pieces, self.sketch.content().cpu().clone())
            self.sketch.clear()
            for piece in pieces:
                self.sketch.update(piece)  # type: ignore[arg-type]

    @torch.no_grad()
    def merge(self, other: "InputMoment") -> None:
        """Add what another moment of the same width has seen, finished tasks and the one under way.

        Raises:
            UserError: If the widths, or exact and sketched, differ.
        """
        if (self.width, self.exact) != (other.width, other.exact):
            raise UserError(
                f"moments of width {self.width} and {other.width} cannot be merged; "
                "they must be of the same layer."
            )
        for name in ("count", "past_count", "energy", "past_energy"):
            getattr(self, name).add_(getattr(other, name))
        if self.exact:
            self.total += other.total
            self.past_total += other.past_total
        else:
            self.sketch.update(other.sketch.content())
            self.past_sketch.update(other.past_sketch.content())

    def rows_seen(self, period: Period = "past") -> int:
        """Return how many rows the moment is of, weights counted."""
        return round(self._mass(period))

    def _mass(self, period: Period) -> float:
        return float(sum(self._terms(period, self.past_count, self.count)))

    def matrix(self, period: Period = "past") -> Tensor:
        """Return `C` [d, d]; zeros if there were no rows."""
        mass = self._mass(period) or 1.0
        if self.exact:
            return torch.stack(self._terms(period, self.past_total, self.total)).sum(0) / mass
        content = self._content(period)
        return content.t() @ content / mass

    def _content(self, period: Period) -> Tensor:
        return torch.cat(self._terms(period, self.past_sketch.content(), self.sketch.content()))

    @staticmethod
    def _terms(period: Period, past: Tensor, current: Tensor) -> list[Tensor]:
        return {"past": [past], "current": [current], "all": [past, current]}[period]

    def trace(self, period: Period = "past") -> float:
        """Return `tr C`, exact also for a sketch."""
        energy = sum(self._terms(period, self.past_energy, self.energy))
        return float(energy) / (self._mass(period) or 1.0)

    def spectrum(self, period: Period = "past") -> Spectrum | None:
        """Return the eigenpairs of `C`, or None if there were no rows."""
        mass = self._mass(period)
        if mass == 0:
            return None
        if self.exact:
            found = Spectrum.of(self.matrix(period))
        else:
            found = Spectrum.of_rows(self._content(period), mass)
        return Spectrum(found.values, found.vectors, self.trace(period))

    @property
    def nbytes(self) -> int:
        """Bytes of the statistic."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())
