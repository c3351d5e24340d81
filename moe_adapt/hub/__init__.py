"""Publishing adapters and loading them again."""

from typing import Any

__all__ = ["compose"]


def __getattr__(name: str) -> Any:
    """Import `compose` when it is asked for: it brings transformers along."""
    if name == "compose":
        from moe_adapt.hub.composition import compose

        return compose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
