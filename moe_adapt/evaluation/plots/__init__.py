"""Pictures, each a function of a report and a path; they need the extra ``plots``."""

from moe_adapt.evaluation.plots.composition import plot_composition
from moe_adapt.evaluation.plots.routing import draw_routing
from moe_adapt.evaluation.plots.trace import draw_experts_per_token, draw_groups, draw_load, draw_sample

__all__ = [
    "draw_experts_per_token",
    "draw_groups",
    "draw_load",
    "draw_routing",
    "draw_sample",
    "plot_composition",
]
