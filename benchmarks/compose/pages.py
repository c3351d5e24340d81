"""The measured table of the guide: a short form of what `tables.py` renders, between two marks in a page."""

import re
from pathlib import Path
from typing import Any

from intervals import REFERENCE, best_merge, having, means_of, of_tasks, paired, seeds_of, spread

__all__ = ["adapters_in_short", "fill"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Rows of the guide's table: label, name of the method in the cells.
_ROWS = (
    ("the right adapter for every row (oracle)", "oracle"),
    ("**LDA, 320 texts per adapter**", "LDA, 320 texts"),
    ("LDA, 32 texts", "LDA, 32 texts"),
    ("LDA, 8 texts", "LDA, 8 texts"),
    ("soft mixture by LDA's probabilities", "composed adapter, 320 texts, soft"),
    ("one LoRA of rank 64, trained on all data", "joint LoRA of rank 64"),
    ("the same, one task after the other", "sequential LoRA of rank 64"),
    ("best merge of PEFT", ""),
    ("Arrow, one expert per token", "Arrow, one expert per token"),
    ("PEFT's X-LoRA, trained on 32 labelled rows per task", "X-LoRA, 32 labelled rows"),
    ("best single adapter", "best single"),
    ("base model", "base"),
)
_FORMS = {"codes": "colliding codes", "names": "label names"}


def fill(page: str, mark: str, text: str) -> None:
    """Put a text between ``<!-- mark -->`` and ``<!-- /mark -->`` of a page.

    Args:
        page: Name of the page in docs.
        mark: The mark.
        text: The text.

    Raises:
        ValueError: If the page does not have the marks.
    """
    path = DOCS / page
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    new, count = pattern.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old)
    if count != 1:
        raise ValueError(f"{page} has no pair of marks {mark!r}")
    path.write_text(new, encoding="utf-8")


def adapters_in_short(cells: list[dict[str, Any]]) -> str:
    """Return the guide's table of A, a pair of columns per form."""
    forms = {form: [cell for cell in cells if cell["form"] == form] for form in _FORMS}
    forms = {form: own for form, own in forms.items() if own}
    head = "".join(f" {_FORMS[form]}, % | LDA (320) minus this |" for form in forms)
    lines = [f"| |{head}", "|---|" + "---|---|" * len(forms)]
    for label, name in _ROWS:
        cells_of_row = []
        for own in forms.values():
            method = name or best_merge(own)
            here = having(own, method)
            if not here:
                cells_of_row.append(" | |")
                continue
            pairs = (of_tasks(here, REFERENCE), of_tasks(here, method))
            difference = "" if method == REFERENCE else paired(*pairs)
            kind = "" if name else f" (`{method.removeprefix('merge ')}`)"
            found = f"{spread(means_of(here, method))}{kind}{seeds_of(here, own)}"
            cells_of_row.append(f" {found} | {difference} |")
        if any(cell != " | |" for cell in cells_of_row):
            lines.append(f"| {label} |{''.join(cells_of_row)}")
    return "\n".join(lines)
