"""Public conformance checks: run them on your own components, as our tests do on ours."""

from moe_adapt.checks.routing import check_scorer, check_selector

__all__ = ["check_scorer", "check_selector"]
