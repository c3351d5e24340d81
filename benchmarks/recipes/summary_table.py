"""The results in short: one line per comparison, and the time of a training step."""

from collections.abc import Mapping
from typing import Any

from rendering import mean_and_spread

__all__ = ["summary_table"]

HEADS = ("accuracy", "seeds", "DynMoLE", "LoRA, equal parameters", "no adapter")
#: Beginnings of the methods' names in the JSON files, in the order of the last columns of `HEADS`.
COLUMNS = (("dynmole",), ("lora",), ("probe", "untrained"))
#: Variants of a training step that the sentence names.
STEPS = (
    "plain LoRA",
    "routed, top-k",
    "routed, DynMoLE",
    "LoRA-Mixer",
    "condenser",
    "top-k, loop over experts",
)


def summary_table(
    reports: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], step: Mapping[str, Any] | None
) -> str:
    """Return the table and the sentence.

    Args:
        reports: Name of a recipe -> its JSON file.
        titles: Name of a recipe -> what was compared.
        step: The JSON file of the time of a training step.
    """
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for name, report in reports.items():
        rows = report["rows"]
        seeds = len({row["seed"] for row in rows} - {None})
        cells = [titles[name], str(seeds)]
        for kinds in COLUMNS:
            own = [row["metrics"]["test/acc"] for row in rows if row["method"].rsplit("_", 1)[-1] in kinds]
            cells.append(mean_and_spread(own))
        lines.append("| " + " | ".join(cells) + " |")
    if step is not None:
        results = step["results"]
        ratios = "; ".join(f"{results[name]['ratio_median']:.2f} {name}" for name in STEPS if name in results)
        lines += ["", f"Processor time of a training step, relative to one LoRA of rank `E r`: {ratios}."]
    lines += ["", "*No adapter* is a linear head on the frozen base, or the base as it is."]
    return "\n".join(lines)
