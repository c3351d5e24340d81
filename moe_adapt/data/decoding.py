"""From an image of any mode to RGB, uint8 [3,H,W]: scaled by its type, turned as its EXIF says.

* 8 bits stay; 16 bits are divided by 257; floats are shares of white and lie in [0, 1].
* Transparent parts show white behind. CMYK, palettes and black-and-white are converted.
* Of an animation the first frame is taken.

What has no known scale (floats beyond [0, 1], 32-bit whole numbers), is cut off, or has more pixels than
Pillow's limit is refused in one sentence.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_adapt.errors import UserError
from moe_adapt.extras import LazyModule

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["decode", "to_rgb"]

Image = LazyModule("PIL.Image")
ImageOps = LazyModule("PIL.ImageOps")
functional = LazyModule("torchvision.transforms.v2.functional")


def decode(data: bytes | Path, name: str) -> torch.Tensor:
    """Decode an image to RGB, uint8 [3,H,W].

    Args:
        data: The encoded image, or its file.
        name: How messages call it.

    Raises:
        UserError: If it cannot be decoded, or its values have no known scale.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
                return to_rgb(image, name)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is too large: {error} Make it smaller.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} cannot be read as an image: remove or replace it.") from error
    except Exception as error:  # whatever a damaged file makes a decoder trip over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise UserError(f"{name} cannot be read as an image ({reason}): remove or replace it.") from error


def to_rgb(image: "Picture", name: str) -> torch.Tensor:
    """Return an image as RGB, uint8 [3,H,W].

    Args:
        image: The image.
        name: How messages call it.

    Raises:
        UserError: If its values have no known scale.
    """
    turned = ImageOps.exif_transpose(image)
    mode = turned.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return _grey(np.asarray(turned).astype(np.float64) / 65535, name)
    if mode == "F":
        return _grey(np.asarray(turned).astype(np.float64), name)
    if mode == "I":
        raise UserError(
            f"{name} has 32-bit whole numbers, whose scale is unknown: save it with 8 or 16 bits."
        )
    if "A" in mode.upper()[1:] or "transparency" in turned.info:
        layer = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return functional.pil_to_tensor(turned.convert("RGB"))


def _grey(shares: np.ndarray, name: str) -> torch.Tensor:
    """Return shares of white [H,W] as uint8 [3,H,W]."""
    if not (shares.min() >= 0 and shares.max() <= 1):
        raise UserError(
            f"{name} has values from {shares.min():.4g} to {shares.max():.4g}; the numbers of such an "
            "image are "
            "shares of white in [0, 1]: scale them, or save it with 8 bits."
        )
    return torch.from_numpy(np.rint(255 * shares).astype(np.uint8)).expand(3, -1, -1).contiguous()
