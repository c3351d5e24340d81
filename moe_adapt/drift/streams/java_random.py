r"""The random numbers of the Java platform, so that our generators give MOA's rows bit for bit.

A 48-bit linear congruential generator, \(s \leftarrow (\mathtt{5DEECE66D}_{16}\, s + \mathtt{B}_{16}) \bmod
2^{48}\), of which each draw takes the top bits. The published drift streams are defined by MOA's generators
and the order of their draws; with another generator the same definition gives other rows.

Reference: the documentation of `java.util.Random`; Knuth, The Art of Computer Programming 2, 3.2.1.
"""

import math

__all__ = ["JavaRandom"]

_MULTIPLIER = 0x5DEECE66D
_MASK = (1 << 48) - 1
_DOUBLE_UNIT = 1.0 / (1 << 53)


class JavaRandom:
    """A generator that draws what `java.util.Random` draws.

    Args:
        seed: Any integer.

    >>> JavaRandom(42).integer(10)
    0
    """

    __slots__ = ("_spare_normal", "_state")

    def __init__(self, seed: int = 1) -> None:
        self._state = (seed ^ _MULTIPLIER) & _MASK
        self._spare_normal: float | None = None

    def _bits(self, count: int) -> int:
        self._state = state = (_MULTIPLIER * self._state + 0xB) & _MASK
        return state >> (48 - count)

    def uniform(self) -> float:
        """Return a double in [0, 1)."""
        first = (_MULTIPLIER * self._state + 0xB) & _MASK
        self._state = second = (_MULTIPLIER * first + 0xB) & _MASK
        return (((first >> 22) << 27) + (second >> 21)) * _DOUBLE_UNIT

    def integer(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        if bound & -bound == bound:
            return (bound * self._bits(31)) >> 31
        while True:
            bits = self._bits(31)
            value = bits % bound
            if bits - value + bound - 1 < 1 << 31:
                return value

    def normal(self) -> float:
        """Return a draw of the standard normal distribution (polar method; every second one is kept)."""
        if self._spare_normal is not None:
            value, self._spare_normal = self._spare_normal, None
            return value
        while True:
            first, second = 2 * self.uniform() - 1, 2 * self.uniform() - 1
            square = first * first + second * second
            if 0 < square < 1:
                break
        scale = math.sqrt(-2 * math.log(square) / square)
        self._spare_normal = second * scale
        return first * scale

    def percent(self, share: int) -> bool:
        """Return True in exactly `share` of 100 cases: MOA's test for noise."""
        return 1 + self.integer(100) <= share
