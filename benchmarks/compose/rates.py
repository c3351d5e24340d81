"""Learning rates: the best of a few on validation rows, tried once and kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["best_rate"]


def best_rate(path: Path, rates: Sequence[float], score: Callable[[float], float]) -> float:
    """Return the rate with the best score.

    Args:
        path: File of the scores by rate; what it has is not computed again.
        rates: What is tried.
        score: Trains at a rate and returns the accuracy on validation rows.
    """
    tried = json.loads(path.read_text()) if path.is_file() else {}
    for rate in rates:
        if str(rate) not in tried:
            tried[str(rate)] = score(rate)
            path.write_text(json.dumps(tried))
            print(path.stem, rate, tried[str(rate)], flush=True)
    return max(rates, key=lambda rate: tried[str(rate)])
