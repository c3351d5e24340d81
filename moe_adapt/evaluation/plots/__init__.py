"""Pictures, each a function of a report and a path; they need the extra ``plots``."""

from moe_adapt.evaluation.plots.routing import draw_routing

__all__ = ["draw_routing"]
