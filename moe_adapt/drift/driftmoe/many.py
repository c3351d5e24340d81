"""Mini-batches: the rows of a data frame one after the other, so that chunks give the bits of single rows."""

from itertools import repeat
from typing import Any

import narwhals as nw

__all__ = ["ManyRows"]


class ManyRows:
    """`learn_many` and `predict_many` for a classifier that has `learn_one` and `predict_proba_one`."""

    def learn_many(self, X: Any, y: Any, w: Any = 1.0) -> None:
        """Learn the rows of a data frame.

        Args:
            X: Data frame, one column per feature.
            y: Series of labels.
            w: Weight of the rows, or a series of weights.
        """
        labels = nw.from_native(y, series_only=True).to_list()
        weights = repeat(w, len(labels)) if isinstance(w, (int, float)) else list(w)
        for x, label, weight in zip(_rows(X), labels, weights, strict=True):
            self.learn_one(x, label, weight)  # type: ignore[attr-defined]

    def predict_proba_many(self, X: Any) -> Any:
        """Return a data frame with one column of probabilities per label met so far."""
        import pandas as pd

        rows = [self.predict_proba_one(x) for x in _rows(X)]  # type: ignore[attr-defined]
        return pd.DataFrame(rows, index=getattr(X, "index", None))

    def predict_many(self, X: Any) -> Any:
        """Return a series with the prediction for every row."""
        import pandas as pd

        answers = [self.predict_one(x) for x in _rows(X)]  # type: ignore[attr-defined]
        return pd.Series(answers, index=getattr(X, "index", None))


def _rows(X: Any) -> list[dict[str, Any]]:
    return nw.from_native(X, eager_only=True).rows(named=True)
