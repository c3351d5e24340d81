r"""Many adapters, room for few: which are kept in memory, which are loaded ahead.

A cache holds `size` adapters. One that is asked for and not there is loaded; if there is no room, one leaves
first. Which one: among those that nobody in the waiting queue asks for, the one that was used longest ago;
if all are waited for, the one that is needed last. Without a queue this is LRU. With a queue that knows all
future requests it is Belady's rule, the best for adapters that have to be in memory to be used. `prefetch`
loads what the queue asks for, and never throws out what is needed sooner.

`loads` counts the loads of a list of requests for a queue of any length, without loading anything.

Reference: ExpertFlow, for prefetching by what is waiting; its predictor could not be verified, and the queue
stands in for it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from moe_adapt.errors import UserError

__all__ = ["AdapterCache", "loads"]

T = TypeVar("T")


class AdapterCache(Generic[T]):
    """Keeps few of many adapters.

    Args:
        load: Loads an adapter by its name.
        size: How many fit.
        unload: Called with name and adapter when one leaves.

    Attributes:
        loaded: How many were loaded so far.
        hits: How many requests found theirs.

    Raises:
        UserError: If none fits.

    >>> cache = AdapterCache(str.upper, size=2)
    >>> [cache.get(name) for name in ("a", "b", "a", "c", "b")], cache.loaded
    (['A', 'B', 'A', 'C', 'B'], 4)
    """

    def __init__(
        self,
        load: Callable[[str], T],
        size: int,
        unload: Callable[[str, T], object] = lambda name, item: None,
    ) -> None:
        if size < 1:
            raise UserError(f"a cache holds at least one adapter, got {size}.")
        self.load, self.size, self.unload = load, size, unload
        self.loaded, self.hits = 0, 0
        self._items: OrderedDict[str, T] = OrderedDict()

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)

    def get(self, name: str, waiting: Sequence[str] = ()) -> T:
        """Return an adapter, loading it if it is not there.

        Args:
            name: Its name.
            waiting: Names that the queue asks for next, in its order.
        """
        if name in self._items:
            self.hits += 1
        else:
            self._bring(name, waiting)
        self._items.move_to_end(name)
        return self._items[name]

    def prefetch(self, waiting: Sequence[str]) -> list[str]:
        """Load what the queue asks for while that throws out nothing that is needed sooner; return the names.

        Args:
            waiting: Names that the queue asks for next, in its order.
        """
        brought = []
        for name in list(dict.fromkeys(waiting))[: self.size]:
            if name not in self._items:
                self._bring(name, waiting)
                brought.append(name)
        return brought

    def _bring(self, name: str, waiting: Sequence[str]) -> None:
        item = self.load(name)
        if len(self._items) >= self.size:
            leaving = self._victim(waiting)
            self.unload(leaving, self._items.pop(leaving))
        self._items[name] = item
        self.loaded += 1

    def _victim(self, waiting: Sequence[str]) -> str:
        """Return what leaves: the longest unused of those not waited for, else what is needed last."""
        needed = {name: place for place, name in reversed(list(enumerate(waiting)))}
        free = [name for name in self._items if name not in needed]
        return free[0] if free else max(self._items, key=lambda name: needed[name])


def loads(requests: Sequence[str], size: int, ahead: int = 0) -> int:
    """Return how often an adapter is loaded for requests in their order.

    Args:
        requests: Names.
        size: How many adapters fit.
        ahead: Length of the queue that is known; 0 is LRU, all requests are Belady's rule.

    Raises:
        UserError: If none fits, or `ahead` is below 0.

    >>> loads(["a", "b", "c", "a", "b", "c"], size=2), loads(["a", "b", "c", "a", "b", "c"], size=2, ahead=6)
    (6, 4)
    """
    if ahead < 0:
        raise UserError(f"the queue has no or more requests, got {ahead}.")
    cache: AdapterCache[None] = AdapterCache(lambda name: None, size)
    for place, name in enumerate(requests):
        cache.get(name, requests[place + 1 : place + 1 + ahead])
    return cache.loaded
