"""How far a method of the wide sequence is from sequential routed LoRA, with two kinds of error.

The half interval over *rows* is of the mean paired difference over all test rows of all orders: what other
test rows would change. That over *orders* is Student's t over the orders' means: what other orders would
change, and with three of them it is wide. The verdict is that of the paired test over orders
(`moe_adapt.evaluation.equivalence`): equal within two points, one of both higher, or not told apart.
"""

import math
from typing import Any

import numpy as np

from moe_adapt.evaluation.equivalence import paired_difference

__all__ = ["REFERENCE", "differences", "right_rows"]

REFERENCE = "seq_moelora"
MARGIN = 2.0


def right_rows(row: dict[str, Any]) -> np.ndarray:
    """Return 100 for each test row that a run answers right at the end and 0 for the others, float64 [n]."""
    bits = [
        np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))[:total]
        for digits, total in zip(row["right"], row["total"], strict=True)
    ]
    return 100.0 * np.concatenate(bits)


def differences(rows: list[dict[str, Any]], labels: dict[str, str]) -> str:
    """Return a Markdown table of differences in points over the orders that both methods have.

    Args:
        rows: Those of a result file, with the field `right`.
        labels: What each method is called.
    """
    known = {(row["method"], row["order"]): right_rows(row) for row in rows}
    orders = [order for method, order in known if method == REFERENCE]
    lines = [
        f"| minus {labels[REFERENCE]} | points | 95 %, rows | 95 %, orders | orders | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for method, label in labels.items():
        shared = [order for order in orders if (method, order) in known]
        if method == REFERENCE or not shared:
            continue
        pairs = [known[method, order] - known[REFERENCE, order] for order in shared]
        by_row = np.concatenate(pairs)
        half = 1.96 * by_row.std(ddof=1) / math.sqrt(len(by_row))
        found = paired_difference([float(pair.mean()) for pair in pairs], [0.0] * len(pairs), MARGIN)
        over = "-" if found.half_width is None else f"± {found.half_width:.1f}"
        verdict = found.verdict("this method", "the reference", MARGIN)
        lines.append(
            f"| {label} | {by_row.mean():+.1f} | ± {half:.1f} | {over} | {len(shared)} | {verdict} |"
        )
    return "\n".join(lines)
