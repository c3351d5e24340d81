"""The evaluation of a composed adapter as one HTML page."""

from typing import TYPE_CHECKING

from moe_adapt.evaluation.html import facts, page, table, verdict
from moe_adapt.evaluation.svg import heat_map

if TYPE_CHECKING:
    from moe_adapt.hub.composition.evaluate import Evaluation

__all__ = ["evaluation_page"]

#: What the methods of an evaluation are called.
METHODS = {"oracle": "the right adapter", "routed": "this adapter, routed", "base": "the base alone"}


def evaluation_page(found: "Evaluation", title: str) -> str:
    """Return the page.

    Args:
        found: What the evaluation found.
        title: Name of the adapter.
    """
    names = [*found.rows, "mean"]
    rows = [
        [METHODS.get(method, method), *(100 * own[name] for name in names)]
        for method, own in found.accuracy.items()
    ]
    counts = [[count / max(1, sum(row)) for count in row] for row in found.routing.values()]
    written = [[str(count) if count else "" for count in row] for row in found.routing.values()]
    slower = found.seconds["routed"] / max(found.seconds["base"], 1e-9) - 1
    chosen = {f"chosen on validation rows, {name}": value for name, value in found.chosen.items()}
    return page(
        f"Composed adapter {title}",
        [
            verdict(_judged(found)),
            "<h2>Accuracy in %</h2>",
            table(["", *names], rows, {place: "max" for place in range(1, len(names) + 1)}, digits=1),
            "<h2>Who went where</h2>",
            heat_map(counts, list(found.routing), found.columns, written),
            '<p class="note">Test rows of each adapter (rows) by the expert that answered (columns).</p>',
            "<h2>Costs and choices</h2>",
            facts(
                {
                    "time per row against the base": f"{slower:+.0%}",
                    "mean margin of the decision": f"{found.margin:.2f}",
                    "test rows": ", ".join(f"{name} {count}" for name, count in found.rows.items()),
                    **chosen,
                }
            ),
        ],
    )


def _judged(found: "Evaluation") -> str:
    accuracy = {name: own["mean"] for name, own in found.accuracy.items()}
    routed, right = accuracy["routed"], accuracy["oracle"]
    said = f"Routed, {routed:.1%} are right; with the right adapter for every row, {right:.1%}"
    others = {name: value for name, value in accuracy.items() if name not in ("routed", "oracle")}
    if others:
        rival = max(others, key=lambda name: others[name])
        gap = 100 * (routed - others[rival])
        word = "points above" if gap > 0 else "points below"
        place = f"{abs(gap):.1f} {word}" if gap else "level with"
        said += f"; {place} {METHODS.get(rival, rival)} ({others[rival]:.1%})"
    return f"{said}. {found.right_route:.1%} of the rows went to their own expert."
