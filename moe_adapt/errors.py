"""Errors that a person can act on.

A `UserError` is one clear sentence: what was wrong, what was expected, what to do. The command line prints it
alone and exits with a non-zero code; in Python it is an ordinary `ValueError`.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["UserError", "did_you_mean"]


class UserError(ValueError):
    """A mistake in the input, told in one sentence that says what to do about it."""


def did_you_mean(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Return a suggestion such as ``" Did you mean 'top_k'?"``, or an empty string if nothing is near.

    Args:
        name: What the user wrote.
        candidates: What would have been accepted.
        limit: The most names to suggest.

    >>> did_you_mean("topk", ["top_k", "top_p", "dense"], limit=1)
    " Did you mean 'top_k'?"
    """
    near = get_close_matches(name, sorted(set(candidates)), n=limit, cutoff=0.6)
    if not near:
        return ""
    return f" Did you mean {' or '.join(repr(match) for match in near)}?"
