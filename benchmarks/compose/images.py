"""Eight groups of ten Tiny-ImageNet classes, whose names collide: the tasks of A as images.

In the form `images` the 200 classes are cut into eight parts in the order of their WordNet numbers, in which
animals stand beside animals, but things by the alphabet; every seed draws ten of each part. In the form
`mixed_images` a seed deals 80 of all classes into the groups at random. In a group each class is called by
one of ten words. A word stands for one fixed direction, the same in all groups, so that nothing but the right
adapter knows which class it means.

The model is the first nine of twelve blocks of a ViT-S/14 (DINOv2-S
fine-tuned for saliency) on images of 112 pixels; adapters sit in blocks 7 to 9.
"""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from encoder import UPPER, Cached, Halves, Settings
from tasks import CODES, Row
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, Dinov2Model

from moe_adapt.data.image_sources import ImageSource, open_images

__all__ = ["GROUPS", "IMAGES", "IMAGE_SIZES", "TRAINED", "ImageHalves", "load_group"]

#: How classes are put into groups.
IMAGES = ("images", "mixed_images")
GROUPS = tuple(f"group {number}" for number in range(8))
#: Rows of a group. Training rows and pixels were chosen on validation rows of seed 7, which no table shows.
IMAGE_SIZES = {"train": 480, "validation": 20, "test": 50}
#: How single adapters are trained; the learning rate is the one that texts chose.
TRAINED = Settings(lr=4e-3, epochs=3)
BLOCKS, PIXELS = 9, 112
FILES = {"train": "train_100_per_class.npz", "test": "val_50_per_class.npz"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def opened(data: Path) -> dict[str, ImageSource]:
    """Return the images of both splits."""
    folder = data / "tiny-imagenet-200"
    return {split: open_images(str(folder / file), split, "image", "label") for split, file in FILES.items()}


def classes_of(task: str, form: str, seed: int) -> list[int]:
    """Return the ten classes of a group."""
    group, width = GROUPS.index(task), len(CODES)
    if form == "images":
        part = 200 // len(GROUPS)
        return random.Random(f"{seed} {task}").sample(range(group * part, (group + 1) * part), width)
    return random.Random(f"{seed} {form}").sample(range(200), 200)[group * width : (group + 1) * width]


def load_group(
    data: Path, task: str, form: str, train: int, validation: int, test: int, seed: int
) -> dict[str, list[Row]]:
    """Return the rows of a group by split; a row's text says which image it is.

    Args:
        data: Folder of the raw files.
        task: One of `GROUPS`.
        form: One of `IMAGES`.
        train: Training rows.
        validation: Validation rows, of the training images too.
        test: Test rows.
        seed: Fixes classes, words and rows.
    """
    sources, classes = opened(data), classes_of(task, form, seed)
    rng = random.Random(f"{seed} {task} {form}")
    candidates = tuple(rng.sample(CODES, len(CODES)))
    parts = {}
    for split, count in (("train", train + validation), ("test", test)):
        labels = [int(label) for label in sources[split].labels]
        own = [number for number, label in enumerate(labels) if label in classes]
        parts[split] = [
            Row(f"{split} {number}", candidates, classes.index(labels[number]), task)
            for number in rng.sample(own, count)
        ]
    return {"train": parts["train"][:train], "validation": parts["train"][train:], "test": parts["test"]}


class ImageHalves(Halves):
    """The image model, cut before its last three blocks.

    Args:
        folder: Folder of the ViT as transformers keeps it.
        data: Folder of the raw files.

    Raises:
        SystemExit: If it is another kind of model.
    """

    def __init__(self, folder: str | Path, data: Path) -> None:
        kind = AutoConfig.from_pretrained(str(folder)).model_type
        if kind != "dinov2":
            raise SystemExit(f"--backbone is of the kind {kind!r}; images need one of the kind dinov2.")
        model = Dinov2Model.from_pretrained(
            str(folder), num_hidden_layers=BLOCKS, dtype=torch.float32, attn_implementation="eager"
        )
        self.loaded, self.sources = model.eval().requires_grad_(False), opened(data)
        self.base, self.lower = self.fresh(), self.fresh()
        self.lower.encoder.layer = self.lower.encoder.layer[:-UPPER]
        self.lower.layernorm = torch.nn.Identity()
        generator = torch.Generator().manual_seed(0)
        directions = torch.linalg.qr(
            torch.randn(self.base.config.hidden_size, len(CODES), generator=generator)
        )
        self.words = dict(zip(CODES, directions.Q.t(), strict=True))

    def fresh(self) -> Any:
        """Return the base model, frozen."""
        return copy.deepcopy(self.loaded)

    @torch.no_grad()
    def cache(self, rows: Sequence[Row]) -> Cached:
        """Return rows with their hidden states in the middle."""
        hidden: list[Tensor] = []
        for start in range(0, len(rows), 64):
            images = torch.stack([self.pixels(row.text) for row in rows[start : start + 64]])
            hidden += [states.clone() for states in self.lower(images).last_hidden_state]
        return Cached(list(rows), hidden, {row.candidates: self.embed(row.candidates) for row in rows})

    def pixels(self, name: str) -> Tensor:
        """Return an image by its split and number, [3, H, W]."""
        split, number = name.split()
        image = self.sources[split].read(int(number))[None].float() / 255
        image = F.interpolate(image, (PIXELS, PIXELS), mode="bilinear", antialias=True)[0]
        return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the directions of words, of length one, [N, d]."""
        return torch.stack([self.words[text] for text in texts])
