"""What the tables of results have in common."""

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["made_by", "mean_and_spread"]


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Return ``mean ± standard deviation``, or the value if there is one."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def made_by(facts: dict[str, Any]) -> str:
    """Return the line under a table, from the manifest of its JSON file."""
    return f"`{facts['command']}`, {facts['cpu_threads']} thread(s), torch {facts['versions']['torch']}."
