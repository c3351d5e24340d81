"""Packages that only some uses need, and the one sentence that says which extra brings a missing one.

The tuner needs the core alone: torch, PEFT, transformers, safetensors, huggingface_hub, NumPy, PyYAML and
packaging. Everything else comes with an extra of ``pip install 'moe-adapt[EXTRA]'``. Code that cannot
do without a package calls `require` before it imports it; code that may never use it takes a `LazyModule`.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["EXTRAS", "LazyModule", "advice", "require", "unmet"]

#: Extra -> the modules that it brings, as they are imported.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("lightning", "jsonargparse", "torchmetrics", "datasets", "rich", "scipy"),
    "vision": ("timm", "torchvision", "PIL"),
    "plots": ("matplotlib", "tensorboard"),
    "drift": ("river", "numba", "scipy"),
    "avalanche": ("avalanche",),
    "sweep": ("ray",),
    "serve": ("fastapi", "uvicorn", "httpx2"),
    "completion": ("shtab",),
    "quantized": ("bitsandbytes",),
}


def advice(module: str, user: str) -> UserError | None:
    """Return the error for a missing module that an extra brings; None if none does.

    Args:
        module: What cannot be imported.
        user: What needs it.
    """
    top = module.partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return UserError(f"{user} needs {top}: pip install 'moe-adapt[{extra}]'.")
    return None


def unmet(error: ModuleNotFoundError, user: str) -> UserError | None:
    """Return the error for a requirement that another library found missing; None if it names none.

    Args:
        error: Such as Lightning raises for a logger whose package is not installed.
        user: What needs it.
    """
    found = re.search(r"Requirement '([^']+)' not met", str(error))
    if found is None:
        return None
    package = re.split(r"[<>=!~\[ ]", found.group(1), maxsplit=1)[0]
    return UserError(f"{user}: an option needs {package}: pip install '{found.group(1)}'.")


def require(user: str, *modules: str) -> None:
    """Check that modules are installed, without importing them.

    Args:
        user: What needs them.
        modules: Their names.

    Raises:
        UserError: If one is missing.
    """
    for module in modules:
        if find_spec(module) is None:
            raise advice(module, user) or UserError(f"{user} needs {module}, which is not installed.")


class LazyModule(ModuleType):
    """A module that is imported when something in it is used.

    Args:
        name: Its full name.

    Raises:
        UserError: When it is used, if it is missing and an extra brings it.
    """

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        try:
            module = import_module(self.__name__)
        except ModuleNotFoundError as error:
            raise advice(error.name or "", "this") or error from None
        return getattr(module, attribute)
