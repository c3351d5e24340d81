"""Publishing adapters and loading them again."""

from importlib import import_module
from typing import Any

__all__ = ["compose"]


def __getattr__(name: str) -> Any:
    """Import `compose` when it is asked for: it brings transformers along."""
    if name in __all__:
        return getattr(import_module("moe_adapt.hub.composition"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
