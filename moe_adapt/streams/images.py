"""Streams of images."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from moe_adapt.data.image_sources import ImageSource, open_images
from moe_adapt.data.tables import SourceOption
from moe_adapt.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_transforms, seeded_transform
from moe_adapt.errors import UserError
from moe_adapt.streams.base import Scenario, TaskStream
from moe_adapt.streams.rows import Opened, RowTable, read_splits, said
from moe_adapt.streams.splits import Arrangement, Labelled, arrange

__all__ = ["ImageStream", "Pictures"]


class Pictures(Dataset):
    """Images read when asked for, as ``pixel_values`` [3,S,S].

    Args:
        table: The rows.
        transform: From uint8 [3,H,W] to what the model takes.
        seed: Fixes the augmentation of (epoch, row); None for a transform without randomness.
        plain: The same images without augmentation; None for these themselves.
    """

    def __init__(
        self, table: RowTable, transform: Any, seed: int | None = None, plain: "Pictures | None" = None
    ) -> None:
        self.table = table
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        self.plain = self if plain is None else plain

    def __len__(self) -> int:
        return len(self.table.row)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, of which the augmentation is a function."""
        self.epoch = epoch

    def raw(self, row: int) -> bytes:
        """Return the bytes that make the image of a row, before the transform."""
        source: ImageSource = self.table.contents[self.table.source[row]]
        return source.raw(int(self.table.row[row]))

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        source: ImageSource = self.table.contents[self.table.source[row]]
        image = source.read(int(self.table.row[row]))
        if self.seed is None:
            return {"pixel_values": self.transform(image)}
        return {"pixel_values": seeded_transform(self.transform, image, self.seed, self.epoch, row)}


class ImageStream(TaskStream):
    """Labelled images as a stream of tasks.

    A source is a folder with one sub-folder per class, an .npz file (`images` and `label`; packed JPEGs:
    `jpeg`, `offset`, `label`; packed bits: `bits`, `shape`, `label`; optionally `name`, the class names), a
    table with an image column (a file, a saved folder, NAME:CONFIGURATION@SPLIT on the Hub),
    ``torchvision:CIFAR100@FOLDER`` or
    ``timm:torch/cifar10@FOLDER``, or in Python any data set of (image, label). A mapping from names to
    sources makes one domain of each.

    Args:
        train: The training images. If it is a folder with train/ and test/ (or val/), both are taken.
        test: The test images; None takes the same source's test split, or holds out `test_fraction`.
        scenario: ``class``, ``task``, ``domain`` or ``blurry``.
        increment: New classes per task.
        first: Classes of the first task; 0 for as many as `increment`.
        order: Names of all classes in the order in which they come; None uses `order_seed`.
        order_seed: Seed of the classes' order, drawn as in the literature; None for that of their first rows.
        tasks: Which classes come in which task, as lists (``[[a, b], [c]]``) or by the task's name.
        blur: Share of a class's training images that is spread over all tasks, for ``blurry``.
        test_fraction: Share of every class held out for testing if there are no test images.
        classes: Use these classes only: the first n, or those listed by name; None takes all.
        train_per_class: Train on so many images of each class; None takes all.
        test_per_class: Test on so many images of each class; None takes all.
        image_column: Column of the image in a table.
        label_column: Column of the label in a table.
        image_size: Height and width of the images in the batch, in pixels.
        crop_fraction: Share of the shorter side that the centre crop keeps.
        mean: Mean of the colour channels, for normalisation.
        std: Standard deviation of the colour channels.
        augment: Crop and mirror training images at random.
        crop_scale: Smallest share of the area that a random crop keeps.
        seed: Decides which images are held out, chosen or spread, and the augmentation.

    Raises:
        UserError: If a source cannot be read, a class has no images, or the numbers make no stream.
    """

    def __init__(
        self,
        train: SourceOption | None = None,
        test: SourceOption | None = None,
        scenario: Scenario = "class",
        increment: int | None = None,
        first: int = 0,
        order: list[str] | None = None,
        order_seed: int | None = 1993,
        blur: float = 0.1,
        test_fraction: float = 0.2,
        classes: int | list[str] | None = None,
        train_per_class: int | None = None,
        test_per_class: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        image_size: int = 224,
        crop_fraction: float = 1.0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        augment: bool = True,
        crop_scale: float = 0.5,
        seed: int = 0,
        tasks: list[list[str]] | dict[str, list[str]] | None = None,
    ) -> None:
        if train is None:
            raise UserError("a stream needs training images: set train to a folder, an .npz file or a table.")

        def opened(source: Any, split: str) -> Opened:
            images = open_images(source, split, image_column, label_column)
            return Opened(images, images.labels, images.class_names)

        train, test = _folders(train, test)
        rows, testing = read_splits(
            train, test, opened, classes, test_fraction, train_per_class, test_per_class, seed
        )
        plain, augmented = image_transforms(image_size, crop_fraction, mean, std, crop_scale)
        inputs = Pictures(rows, plain)
        if augment:
            inputs = Pictures(rows, augmented, seed, plain=inputs)
        transform = {
            "image_size": image_size,
            "crop_fraction": crop_fraction,
            "mean": list(mean),
            "std": list(std),
            "augment": augment,
            "crop_scale": crop_scale if augment else None,
        }
        super().__init__(
            **arrange(
                Labelled(inputs, rows.labels, rows.domains),
                Labelled(Pictures(testing, plain), testing.labels, testing.domains),
                rows.class_names,
                Arrangement(scenario, increment, first, order, order_seed, blur, seed, tasks),
                origin={"kind": "images", "train": said(train), "test": said(test), "transform": transform},
            )
        )


def _folders(train: Any, test: Any) -> tuple[Any, Any]:
    """Find the splits of a folder that has a sub-folder for each."""
    if not isinstance(train, str) or not (Path(train).expanduser() / "train").is_dir():
        return train, test
    root = Path(train).expanduser()
    found = [str(root / name) for name in ("test", "val", "validation") if (root / name).is_dir()]
    return str(root / "train"), test or (found[0] if found else None)
