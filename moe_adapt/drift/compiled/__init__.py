"""DriftMoE's row path as machine code, with numba; the plain path is its reference and its fallback."""

from importlib.util import find_spec

__all__ = ["available"]


def available() -> bool:
    """Return whether numba is installed."""
    return find_spec("numba") is not None
