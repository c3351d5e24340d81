"""Turn any pretrained Hugging Face or timm backbone into a mixture of LoRA experts that keeps learning.

Importing this package imports nothing heavy, not even torch. `moe_adapt.register()` (or importing
`moe_adapt.tuner`) teaches PEFT the adapter type ``ROUTED_LORA``.
"""

from moe_adapt import renamed
from moe_adapt.errors import UserError

renamed.install()

__all__ = ["UserError", "__version__", "register"]


def register() -> None:
    """Register the adapter type ``ROUTED_LORA`` with PEFT; calling it again changes nothing."""
    import moe_adapt.tuner  # noqa: F401


def __getattr__(name: str) -> str:
    """Return the version, looked up when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moe-adapt")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"
