r"""Values that routers hand from site to site within one forward, exact under both kinds of checkpointing.

A router may depend on what was computed at an earlier site: a recurrent state that runs through the depth of
the model, or one decision for all sites. Gradient checkpointing runs sites again in the backward pass, block
by block from the last to the first, so that "the value of the site before" has to be looked up and not read
from a variable that later sites have overwritten.

* Without reentrance a site that runs again reads the value of the first run, whose graph is intact.
* With reentrance the first run has no graph. A site that runs again reads a *copy* of the value; the gradient
  that arrives there is kept, and added where the value itself is made again (`Cell.add`), which is later in
  the backward pass, because blocks run again in reverse order. Sites of one block are connected directly.
"""

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

__all__ = ["Shared"]

Chain = tuple[str, int, str]


def _keep(box: list[Tensor], gradient: Tensor) -> None:
    box[:] = [box[0] + gradient] if box else [gradient]


def _with_kept(box: list[Tensor], gradient: Tensor) -> Tensor:
    return gradient + box[0] if box else gradient


class Cell:
    """A value that one visit of a site made and that others read.

    Args:
        value: The value.
        maker: The visit.
    """

    def __init__(self, value: Tensor, maker: Hashable) -> None:
        self.maker = maker
        self.blind = not torch.is_grad_enabled()
        self._gradient: list[
            Tensor
        ] = []  # of copies; no cycle through the value, so that memory goes at once
        self._again: Tensor | None = None
        self._value = self._marked(value)

    def _marked(self, value: Tensor) -> Tensor:
        if value.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            value.register_hook(partial(_with_kept, self._gradient))
        return value

    def remake(self, value: Tensor) -> Tensor:
        """Take the value that a second run of the maker gives."""
        if self.blind:
            self._again = self._marked(value)
        return value

    def read(self, blind: bool, again: bool) -> Tensor:
        """Return the value for a reader.

        Args:
            blind: Whether the reader's first run has no graph.
            again: Whether the reader runs again.
        """
        if again and blind and self._again is not None:
            return self._again  # maker and reader are in one block
        if torch.is_grad_enabled() and (blind or self.blind):
            return self._copy()
        return self._value

    def _copy(self) -> Tensor:
        copy = self._value.detach().requires_grad_()
        copy.register_hook(partial(_keep, self._gradient))
        return copy


class Shared:
    """What the sites of one forward share; `RouteContext.once` and `RouteContext.pass_on` use it."""

    def __init__(self) -> None:
        self._latest: dict[tuple[Chain, int], Cell] = {}
        self._made: dict[tuple[Chain, Hashable], Cell] = {}
        self._before: dict[tuple[Chain, Hashable], Cell | None] = {}
        self._blind: set[Hashable] = set()

    def once(self, chain: Chain, visit: Hashable, again: bool, compute: Callable[[], Tensor]) -> Tensor:
        """Return what the first site computes, at every site.

        Args:
            chain: Whose value it is.
            visit: The visit of a site that asks.
            again: Whether the site runs again.
            compute: Gives the value.
        """
        self._look(visit, again)
        cell = self._latest.get((chain, 0))
        if cell is None:
            cell = self._latest[chain, 0] = Cell(compute(), visit)
        elif again and cell.maker == visit:
            return cell.remake(compute())
        elif cell.maker != visit:
            return cell.read(visit in self._blind, again)
        return cell.read(False, False)

    def pass_on(
        self,
        chain: Chain,
        visit: Hashable,
        again: bool,
        tokens: int,
        update: Callable[[Tensor | None], Tensor],
    ) -> Tensor:
        """Return the new state of a chain of sites.

        Args:
            chain: Whose state it is.
            visit: The visit of the site that updates it.
            again: Whether the site runs again.
            tokens: Number of tokens; sites with other numbers have chains of their own.
            update: Gives the new state from the one before; None at the first site.
        """
        self._look(visit, again)
        if not again:
            self._before[chain, visit] = self._latest.get((chain, tokens))
        before = self._before[chain, visit]
        state = update(None if before is None else before.read(visit in self._blind, again))
        if again:
            return self._made[chain, visit].remake(state)
        self._latest[chain, tokens] = self._made[chain, visit] = Cell(state, visit)
        return state

    def _look(self, visit: Hashable, again: bool) -> None:
        if not again and not torch.is_grad_enabled():
            self._blind.add(visit)
