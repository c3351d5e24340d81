"""Turn any pretrained Hugging Face or timm backbone into a mixture of LoRA experts that keeps learning.

Importing this package imports torch and nothing heavier. `moe_adapt.register()` (or importing
`moe_adapt.tuner`) teaches PEFT the adapter type ``ROUTED_LORA``.
"""

from importlib.metadata import PackageNotFoundError, version

import torch as torch

from moe_adapt import renamed
from moe_adapt.errors import UserError

try:
    __version__ = version("moe-adapt")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

renamed.install()

__all__ = ["UserError", "__version__", "register"]


def register() -> None:
    """Register the adapter type ``ROUTED_LORA`` with PEFT; calling it again changes nothing."""
    import moe_adapt.tuner  # noqa: F401
