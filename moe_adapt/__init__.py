"""Turn any pretrained Hugging Face or timm backbone into a mixture of LoRA experts that keeps learning.

Importing this package imports nothing heavy, not even torch. `moe_adapt.register()` (or importing
`moe_adapt.tuner`) teaches PEFT the adapter type ``ROUTED_LORA``.
"""

from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.renamed import install

install()

__all__ = ["UserError", "__version__", "pipeline", "register"]


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


def pipeline(source: str, base: str | None = None, batch_size: int = 32) -> Any:
    """Open a run or an adapter for use; see `moe_adapt.serving.pipeline.pipeline`.

    Args:
        source: Folder of a run, folder of an exported adapter, or ``user/name`` on the Hub.
        base: Folder or name of the base model, where the adapter does not say where it is.
        batch_size: Rows per forward.

    Raises:
        UserError: If it cannot be opened.
    """
    from moe_adapt.serving.pipeline import pipeline as opened

    return opened(source, base, batch_size)
