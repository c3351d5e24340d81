"""Tensors that grow by a block of rows per task: old rows are buffers, the newest are parameters.

A slice of a parameter with zero gradient would still move under momentum or weight decay; a buffer cannot.
Both kinds are in the state, and loading a checkpoint of another task resizes them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Growing"]


class Growing(nn.Module):
    """A module of named tensors with one row, or a few, per task.

    A subclass names its tensors in `tensors`. Tensor ``down``, say, is the buffer ``frozen_down`` and, while
    a task is being learned, the parameter ``new_down``.

    Args:
        shapes: Shape of one row of each tensor.
    """

    tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name in self.tensors:
            self.register_buffer(f"frozen_{name}", torch.zeros(0, *shapes[name]))
            self.register_parameter(f"new_{name}", None)

    def frozen(self, name: str) -> Tensor:
        """Return the frozen rows of a tensor, [n, ...]."""
        return getattr(self, f"frozen_{name}")

    def new(self, name: str) -> nn.Parameter | None:
        """Return the rows that are being learned, or None between tasks."""
        return getattr(self, f"new_{name}")

    def whole(self, name: str) -> Tensor:
        """Return all rows of a tensor, the newest last."""
        frozen, new = self.frozen(name), self.new(name)
        return frozen if new is None else torch.cat([frozen, new])

    def append(self, rows: dict[str, Tensor]) -> None:
        """Freeze what was new and add trainable rows to every tensor."""
        self.freeze()
        for name in self.tensors:
            setattr(self, f"new_{name}", nn.Parameter(rows[name].to(self.frozen(name))))
        self.changed()

    @torch.no_grad()
    def freeze(self) -> None:
        """Turn the newest rows into frozen ones, bit for bit."""
        for name in self.tensors:
            if self.new(name) is not None:
                setattr(self, f"frozen_{name}", self.whole(name).detach())
                setattr(self, f"new_{name}", None)
        self.changed()

    def discard(self) -> None:
        """Drop the newest rows."""
        for name in self.tensors:
            setattr(self, f"new_{name}", None)

    def changed(self) -> None:
        """Drop what was computed from the frozen rows; called whenever they change."""

    def _apply(self, fn: Any, recurse: bool = True) -> "Growing":
        result = super()._apply(fn, recurse)
        self.changed()
        return result

    def take_shapes(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Get as many rows, frozen and new, as a state has.

        Args:
            state: The state of a whole model.
            prefix: What the names of this module begin with in it.
        """
        for name in self.tensors:
            frozen, new = state.get(f"{prefix}frozen_{name}"), state.get(f"{prefix}new_{name}")
            own = self.frozen(name)
            if frozen is not None and frozen.shape[1:] == own.shape[1:]:
                setattr(self, f"frozen_{name}", own.new_zeros(frozen.shape))
                fresh = None if new is None else nn.Parameter(own.new_zeros(new.shape))
                setattr(self, f"new_{name}", fresh)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.take_shapes(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.changed()
