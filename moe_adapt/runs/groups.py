"""The report of ``moe-adapt group``: one HTML file with groups, the matrix of losses, and silhouettes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moe_adapt.evaluation.html import page, table, verdict
from moe_adapt.evaluation.svg import heat_map, line_chart
from moe_adapt.files import write_file
from moe_adapt.training.groups import Grouping

__all__ = ["write_groups_report"]


def write_groups_report(folder: Path, grouping: Grouping, rows: Mapping[str, int]) -> Path:
    """Write ``groups.html``.

    Args:
        folder: Where to.
        grouping: The groups.
        rows: Number of training rows of each value.
    """
    groups = grouping.groups()
    shown = [
        (group, len(members), sum(rows[name] for name in members), ", ".join(members))
        for group, members in groups.items()
    ]
    order = [grouping.names.index(name) for members in groups.values() for name in members]
    losses = np.array(grouping.losses)[np.ix_(order, order)]
    names = [grouping.names[number] for number in order]
    span = max(float(losses.max() - losses.min()), 1e-12)
    parts = [
        verdict(grouping.verdict()),
        "<h2>Groups</h2>",
        table(["group", "members", "training rows", "who"], shown, texts=True),
        "<h2>How well each one's expert serves the others</h2>",
        heat_map((1 - (losses - losses.min()) / span).tolist(), names, names),
        '<p class="note">Loss of the expert trained for the column on the training rows of the row, from '
        f"{losses.min():.3f} (strongest colour) to {losses.max():.3f}. Members of a group stand "
        "side by side.</p>",
        *_silhouettes(grouping),
    ]
    path = folder / "groups.html"
    write_file(path, page(f"Groups of {grouping.key}", parts))
    return path


def _silhouettes(grouping: Grouping) -> list[str]:
    if len(grouping.silhouettes) < 2:
        return []
    points = [(float(k), value) for k, value in sorted(grouping.silhouettes.items())]
    return ["<h2>How many groups</h2>", line_chart({"mean silhouette": points}, "groups", "mean silhouette")]
