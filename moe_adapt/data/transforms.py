"""From decoded images to what a model takes: resize, crop, normalise; random crops that can be repeated."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.extras import LazyModule

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "image_transforms", "seeded_transform"]

v2 = LazyModule("torchvision.transforms.v2")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def image_transforms(
    image_size: int,
    crop_fraction: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    crop_scale: float,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the transform for testing and the one with random crops and flips, of images uint8 [3,H,W].

    Args:
        image_size: Height and width of the result, in pixels.
        crop_fraction: Share of the shorter side that the centre crop keeps.
        mean: Mean of the colour channels.
        std: Standard deviation of the colour channels.
        crop_scale: Smallest share of the area that a random crop keeps.

    Raises:
        UserError: If a share is outside (0, 1].
    """
    if not 0 < crop_fraction <= 1 or not 0 < crop_scale <= 1:
        raise UserError(
            f"crop_fraction and crop_scale must be in (0, 1], got {crop_fraction} and {crop_scale}."
        )
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    resize = v2.Resize(round(image_size / crop_fraction), antialias=True)
    crop = v2.RandomResizedCrop(image_size, scale=(crop_scale, 1.0), antialias=True)
    plain = v2.Compose([resize, v2.CenterCrop(image_size), *finish])
    return plain, v2.Compose([crop, v2.RandomHorizontalFlip(), *finish])


def seeded_transform(transform: Callable[[Tensor], Tensor], image: Tensor, *words: int) -> Tensor:
    """Return the transformed image; what is random in it follows from `words`, such as (seed, epoch, row)."""
    before = torch.default_generator.get_state()
    draw = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    torch.default_generator.manual_seed(int(draw >> np.uint64(1)))
    pixels = transform(image)
    torch.default_generator.set_state(before)
    return pixels
