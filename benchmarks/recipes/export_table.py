"""The table of ``benchmarks/results/export_gap.json``: what a routed adapter loses as one ordinary LoRA."""

from typing import Any

from rendering import made_by

__all__ = ["export_table"]

HEADS = ("adapter", "rank", "mean KL", "same answer", "accuracy, routed", "accuracy, merged")


def export_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of the measured gaps."""
    rows = {name: run for name, run in report["runs"].items() if run}
    tested = {f"{row['gap']['rows']:,}" for run in rows.values() for row in run}
    lines = [
        "## Routed adapters exported as one LoRA",
        "",
        "MiniLM on Banking77, one run each, 6 experts of rank 4; every gate replaced by its mean over "
        f"training rows, measured on {' or '.join(sorted(tested))} test rows. The first rank is the exact "
        "one, smaller ones are cut by a singular value decomposition. KL is from the routed model's answer.",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|---" * len(HEADS) + "|",
    ]
    for name, run in rows.items():
        for row in run:
            gap = row["gap"]
            cells = [
                name,
                str(row["rank"]),
                f"{gap['kl_mean']:.3f}",
                f"{100 * gap['agreement']:.1f} %",
                f"{gap['accuracy_routed']:.3f}",
                f"{gap['accuracy_merged']:.3f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", made_by(report["manifest"])]
    return "\n".join(lines)
