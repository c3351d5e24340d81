"""The measured tables of the guides: short forms of what `tables.py` renders, between two marks in a page."""

import re
from pathlib import Path
from typing import Any

from intervals import best_merge, by_setting, of_tenants, task_row, tenant_row, writing_row

__all__ = [
    "adapters_in_short",
    "customers_in_short",
    "fill",
    "groups_in_short",
    "language_in_short",
    "serving_in_short",
]

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Rows of the guide's table: label, name of the method in the cells.
_ROWS = (
    ("the right adapter for every row (oracle)", "oracle"),
    ("**LDA, 320 texts per adapter**", "LDA, 320 texts"),
    ("LDA, 32 texts", "LDA, 32 texts"),
    ("LDA, 8 texts", "LDA, 8 texts"),
    ("LDA, a mean per class, 320 labelled texts", "LDA, class means, 320 texts"),
    ("the same, all 480 images", "LDA, class means, 480 texts"),
    ("the same, block chosen on them", "LDA, class means, 480 texts, block by leave-one-out"),
    ("soft mixture by LDA's probabilities", "composed adapter, 320 texts, soft"),
    ("one LoRA of rank 64, trained on all data", "joint LoRA of rank 64"),
    ("the same, one task after the other", "sequential LoRA of rank 64"),
    ("best merge of PEFT", ""),
    ("Arrow, one expert per token", "Arrow, one expert per token"),
    ("PEFT's X-LoRA, trained on 320 labelled rows per task", "X-LoRA, 320 labelled rows"),
    ("PEFT's X-LoRA, trained on 32 labelled rows per task", "X-LoRA, 32 labelled rows"),
    ("best single adapter", "best single"),
    ("base model", "base"),
)
_JOINT = ("one LoRA of rank 40, trained on all data", "joint LoRA of rank 40")
_FORMS = {"codes": "colliding codes", "names": "label names", "images": "images, colliding codes"}


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
        rows = {form: task_row(own, name or best_merge(own)) for form, own in forms.items()}
        kinds = {form: "" if name else f" (`{best_merge(own)[6:]}`)" for form, own in forms.items()}
        if any(row.accuracy for row in rows.values()):
            told = "".join(f" {row.accuracy}{kinds[form]} | {row.resampled} |" for form, row in rows.items())
            lines.append(f"| {label} |{told}")
    return "\n".join(lines)


def language_in_short(cells: list[dict[str, Any]]) -> str:
    """Return the guide's table of the language model: the likeliest candidates, and what is written."""
    parts = []
    for form, called in (("written_names", "names of labels"), ("written_codes", "colliding codes")):
        own = [cell for cell in cells if cell["form"] == form]
        if not own:
            continue
        head = (
            "likeliest candidate, % | LDA (320) minus this | written exactly, % | LDA minus this, over rows"
        )
        lines = [f"| {called} | {head} |", "|---|---|---|---|---|"]
        for label, name in (*_ROWS, _JOINT):
            row = task_row(own, name or best_merge(own))
            wrote = writing_row(own, name or best_merge(own))
            kind = "" if name else f" (`{best_merge(own)[6:]}`)"
            if row.accuracy:
                told = f"{row.accuracy}{kind} | {row.resampled} | {wrote.accuracy} | {wrote.resampled}"
                lines.append(f"| {label} | {told} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def customers_in_short(cells: list[dict[str, Any]]) -> str:
    """Return the guide's table of B: methods by how often tenants agree."""
    found = by_setting([cell for cell in cells if cell["part"] == "B"])
    shares = [(setting["agreement"], of_tenants(own)) for setting, own in found]
    head = "".join(f" agree on {100 * share:.0f} % | minus one LoRA |" for share, _ in shares)
    lines = [f"| |{head}", "|---|" + "---|---|" * len(shares)]
    for label, method in (
        ("one LoRA for all", "plain LoRA"),
        ("an expert by key", "by key"),
        ("**a shared one beside an expert by key**", "shared and by key"),
        ("two of four experts per token, learned", "top-2 per token"),
        ("the same with a frozen random router", "frozen random router"),
    ):
        rows = [tenant_row(by_method, method) for _, by_method in shares]
        if any(row.accuracy for row in rows):
            lines.append(f"| {label} |" + "".join(f" {row.accuracy} | {row.resampled} |" for row in rows))
    return "\n".join(lines)


def groups_in_short(cells: list[dict[str, Any]]) -> str:
    """Return the guide's table of C: methods by setting."""
    parts = []
    for setting, own in by_setting([cell for cell in cells if cell["part"] == "C"]):
        by_method = of_tenants(own)
        head = f"{setting['tenants']} customers, {setting['policies']} policies"
        lines = [f"| {head} | accuracy, % | minus one LoRA |", "|---|---|---|"]
        for label, method in (
            ("one LoRA for all", "plain LoRA"),
            ("an expert per customer", "per tenant"),
            ("an expert per true group", "true groups"),
            ("**an expert per found group**", "found groups"),
            ("an expert per random group", "random groups"),
            ("two experts per token, learned", "top-2 per token"),
            ("the same with a frozen random router", "frozen random router"),
        ):
            row = tenant_row(by_method, method)
            if row.accuracy:
                lines.append(f"| {label} | {row.accuracy} | {row.resampled} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def serving_in_short(report: dict[str, Any]) -> str:
    """Return the guide's table of requests per second, a part for each number of layers with adapters."""
    methods = ("base alone", "composed, by id", "PEFT adapter_names", "PEFT one after the other")
    head = "base alone | composed, by id | PEFT's mixed batch | PEFT, one by one | of the base | times PEFT"
    plain, parts = len(report["settings"]["projections"]), []
    rows = [{"layers per block": plain, **row} for row in report["rows"]]
    for layers in dict.fromkeys(row["layers per block"] for row in rows):
        lines = [f"| {layers} layers per block | {head} |", "|---|" + "---|" * 6]
        for row in rows:
            if row["layers per block"] == layers:
                speeds = [f"{row['requests per second'][name]:.0f}" for name in methods]
                ratios = f"{100 * row['share of the base']:.0f} % | {row['times PEFT']:.2f}"
                lines.append(f"| {row['adapters']} adapters | {' | '.join(speeds)} | {ratios} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
