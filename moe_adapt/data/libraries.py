"""Data sets of torchvision and timm by name, from files that are already there."""

import inspect
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.extras import LazyModule

__all__ = ["LIBRARIES", "library_dataset"]

timm_data = LazyModule("timm.data")
torchvision = LazyModule("torchvision")

#: What stands before the colon.
LIBRARIES = ("timm", "torchvision")


def library_dataset(source: str, split: str) -> Any:
    """Return a data set of torchvision or timm, as ``LIBRARY:NAME@FOLDER`` says.

    Nothing is downloaded.

    Args:
        source: Such as ``torchvision:CIFAR100@data`` or ``timm:torch/cifar10@data``.
        split: The split to take.

    Raises:
        UserError: If there is no such data set, or it is not in the folder.
    """
    library, _, rest = source.partition(":")
    name, _, folder = rest.partition("@")
    root = str(Path(folder or ".").expanduser())
    try:
        if library == "timm":
            return timm_data.create_dataset(name, root=root, split=split)
        if not hasattr(torchvision.datasets, name):
            hint = did_you_mean(name, torchvision.datasets.__all__)
            raise UserError(f"torchvision has no data set {name!r}.{hint}")
        kind = getattr(torchvision.datasets, name)
        by_flag = "train" in inspect.signature(kind).parameters
        return kind(root, **({"train": split == "train"} if by_flag else {"split": split}))
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source!r} cannot be opened ({split}): {str(error).splitlines()[0]}") from error
