"""The report of an unlearning: one HTML file, and the sentence that the command ends with."""

from collections.abc import Mapping
from typing import Any

from moe_adapt.evaluation.html import facts, page, table, verdict

__all__ = ["unlearning_page", "unlearning_sentence"]

_WORDS = {"forget": "to forget", "retain": "to retain", "unseen": "unseen"}


def unlearning_sentence(report: Mapping[str, Any]) -> str:
    """Return what came of an unlearning in one sentence.

    Args:
        report: As `moe_adapt.runs.unlearn.unlearn` returns it.
    """
    kind = "accuracy" if "accuracy" in report["forget"] else "loss"
    parts = []
    for name in ("forget", "retain"):
        values = report[name][kind]
        parts.append(f"{kind} of rows {_WORDS[name]} {values['before']:.3f} to {values['after']:.3f}")
    stable = report["stability"]["model"]
    parts.append(f"{100 * stable:.1f} % of retained selections unchanged")
    if "membership" in report:
        found = report["membership"]
        parts.append(f"membership attack {found['before']:.3f} to {found['after']:.3f} (0.5: knows nothing)")
    return "; ".join(parts)


def unlearning_page(report: Mapping[str, Any], run: str) -> str:
    """Return the report as a page.

    Args:
        report: As `moe_adapt.runs.unlearn.unlearn` returns it.
        run: Name of the run.
    """
    rows = []
    for name, words in _WORDS.items():
        for kind in ("loss", "accuracy"):
            if name in report and kind in report[name]:
                values = report[name][kind]
                rows.append((f"{kind} of rows {words}", values["before"], values["after"]))
    if "membership" in report:
        rows.append(("membership attack, area", *report["membership"].values()))
    stable = report["stability"]
    kept = "no linear top-k router" if stable["inputs"] is None else f"{stable['inputs']:.4f}"
    parts = [
        verdict(f"{run}: {unlearning_sentence(report)}."),
        "<h2>Before and after</h2>",
        table(["", "before", "after"], rows),
        '<p class="note">An attack of 0.5 cannot tell rows to forget from unseen ones; far below it they are '
        "conspicuous by large losses. Forgetting on these rows says nothing of what can be recovered by "
        "training on.</p>",
        "<h2>Routing of retained rows</h2>",
        facts(
            {
                "selections unchanged, inputs as they were": kept,
                "selections unchanged, model as it runs": f"{stable['model']:.4f}",
            }
        ),
        "<h2>How</h2>",
        facts({**report["procedure"], "epochs": report["epochs"], "steps": report["steps"]}),
    ]
    return page(f"Unlearning from {run}", parts)
