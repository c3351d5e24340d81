"""The routing picture: which site used which expert, and how decided the routers were over time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.plots._matplotlib import pyplot_figure

__all__ = ["draw_routing"]


def draw_routing(report: Mapping[str, Any], path: str | Path) -> None:
    """Draw expert load (site x expert) above entropy and experts per token over the steps.

    Args:
        report: ``load``, the shares of picks [E] by site, and ``history``, a list of ``step``, ``entropy``,
            ``k``, as `moe_adapt.training.callbacks.RoutingMonitor` writes them into ``routing.json``.
        path: The picture, of any type that matplotlib writes.

    Raises:
        UserError: If matplotlib is not installed.
    """
    load, history = report["load"], report["history"]
    experts = max((len(shares) for shares in load.values()), default=1)
    rows = max(2.0, 0.16 * len(load))
    figure, (heat, curve) = pyplot_figure(max(8.0, 0.4 * experts + 5.0), rows + 4.0, [rows, 2.5])

    padded = [[*shares, *[float("nan")] * (experts - len(shares))] for shares in load.values()]
    image = heat.imshow(padded, aspect="auto", vmin=0.0, cmap="viridis", interpolation="nearest")
    heat.set_yticks(range(len(load)), [_short(site) for site in load], fontsize=6)
    heat.set_xticks(range(experts))
    heat.set_xlabel("expert")
    heat.set_title("share of picks per expert, last epoch")
    figure.colorbar(image, ax=heat)

    steps = [row["step"] for row in history]
    curve.plot(steps, [row["entropy"] for row in history], color="tab:blue")
    curve.set_ylim(0.0, 1.05)
    curve.set_xlabel("step")
    curve.set_ylabel("router entropy (1 = uniform)", color="tab:blue")
    kept = curve.twinx()
    kept.plot(steps, [row["k"] for row in history], color="tab:orange")
    kept.set_ylim(0.0, experts + 0.3)
    kept.set_ylabel("experts per token", color="tab:orange")
    curve.set_title("mean over sites")
    figure.savefig(path, dpi=110)


def _short(site: str, parts: int = 5) -> str:
    return ".".join(site.split(".")[-parts:])
