"""Images with one label each, scaled, normalised and lightly augmented.

The random crop and flip of an image follow from (seed, epoch, row) alone: worker processes and resumed runs
see the same pixels as an uninterrupted run in one process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_adapt.data.image_sources import ImageArrays, ImageSource, choose_classes, open_images
from moe_adapt.data.tables import SourceOption, TableSource
from moe_adapt.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_transforms, seeded_transform
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.extras import LazyModule
from moe_adapt.training.datamodules.base import Batch, SeededDataModule
from moe_adapt.training.datamodules.rows import Rows

__all__ = ["ImageClassificationData", "ImageRows"]

v2 = LazyModule("torchvision.transforms.v2")

_SPLIT_FOLDERS = {"train": ["train"], "validation": ["val", "validation", "valid"], "test": ["test"]}


class ImageRows(Rows):
    """Images read when asked for.

    Args:
        source: Where they are.
        rows: Row numbers in the source, [rows].
        labels: Class numbers, [rows].
        seed: Fixes the augmentation.
    """

    def __init__(self, source: ImageSource, rows: np.ndarray, labels: np.ndarray, seed: int) -> None:
        super().__init__(rows.tolist(), labels)
        self.source = source
        self.seed = seed
        self.epoch = 0
        self.transform: Callable[[torch.Tensor], torch.Tensor] = v2.Identity()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, of which the augmentation is a function."""
        self.epoch = epoch

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        """Return the transformed image [3,S,S] and its class number."""
        image = self.source.read(self.items[row])
        pixels = seeded_transform(self.transform, image, self.seed, self.epoch, row)
        return pixels, int(self.strata[row])


class ImageClassificationData(SeededDataModule):
    """Images and labels, as batches ``pixel_values [B,3,S,S], labels [B]``.

    Each of train, validation and test is a folder with one sub-folder per class, an .npz file (`images`
    [N,H,W,3] uint8 and `label` [N], or packed JPEGs: `jpeg`, `offset`, `label`; optionally `name`, the class
    names), or a table with an image column (a file, a folder written by `Dataset.save_to_disk`, a data set
    on the Hub as NAME:CONFIGURATION@SPLIT). If `train` is a folder with the sub-folder train/, its val/ and
    test/ are taken too.

    Args:
        train: The training images.
        validation: The validation images; if None, a share of the training images is held out.
        test: The test images, also used for predictions.
        image_column: Column of the image in a table.
        label_column: Column of the label in a table.
        classes: Use these classes only: the first n, or those listed by name; None takes all.
        rows_per_class: Train on so many images of each class; None takes all.
        image_size: Height and width of the images in the batch, in pixels.
        crop_fraction: Share of the shorter side that validation's centre crop keeps.
        mean: Mean of the colour channels, for normalisation.
        std: Standard deviation of the colour channels.
        augment: Crop and mirror training images at random.
        crop_scale: Smallest share of the area that a random crop keeps.
        validation_fraction: Share of the training images held out if no validation is given, class by class.
        batch_size: Images per batch.
        max_train_rows: Train on so many images only, chosen class by class; None takes all.
        num_workers: Worker processes per loader; 0 loads in the main process.
        seed: Fixes the held-out and chosen images, the order of every epoch and the augmentation.

    Raises:
        UserError: If a source cannot be read, a split is empty, a label is outside its range, or a class
            does not exist (in `setup`), or an image cannot be decoded (when it is read).
    """

    def __init__(
        self,
        train: SourceOption | None = None,
        validation: SourceOption | None = None,
        test: SourceOption | None = None,
        image_column: str = "image",
        label_column: str = "label",
        classes: int | list[str] | None = None,
        rows_per_class: int | None = None,
        image_size: int = 224,
        crop_fraction: float = 1.0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        augment: bool = True,
        crop_scale: float = 0.5,
        validation_fraction: float = 0.1,
        batch_size: int = 32,
        max_train_rows: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        sources = _split_folders({"train": train, "validation": validation, "test": test})
        super().__init__(sources, validation_fraction, batch_size, max_train_rows, False, num_workers, seed)
        if rows_per_class is not None and rows_per_class < 1:
            raise UserError(f"rows_per_class must be at least 1, got {rows_per_class}.")
        self.image_column = image_column
        self.label_column = label_column
        self.classes = classes
        self.rows_per_class = rows_per_class
        self.class_names: list[str] = []
        self.preparation = {
            "image_size": image_size,
            "crop_fraction": crop_fraction,
            "mean": list(mean),
            "std": list(std),
        }
        self.plain, augmented = image_transforms(image_size, crop_fraction, mean, std, crop_scale)
        self.augmented = augmented if augment else self.plain

    @property
    def num_classes(self) -> int:
        """Number of classes; known after `setup`."""
        return len(self.class_names)

    def answering(self) -> dict[str, Any]:
        """Return class names and how pixels are prepared."""
        return {
            "task": "image-classification",
            "class_names": list(self.class_names),
            "image_column": self.image_column,
            "label_column": self.label_column,
            **self.preparation,
        }

    def read(self, source: TableSource | ImageArrays, split: str) -> Rows:
        """Return the images of the chosen classes."""
        images = open_images(source, split, self.image_column, self.label_column)
        if not self.class_names:
            self.class_names = choose_classes(images.class_names, self.classes)
        missing = [name for name in self.class_names if name not in images.class_names]
        if split == "train" and missing:
            raise UserError(f"the training images have no class {missing[0]!r}.")
        extra = [name for name in images.class_names if name not in self.class_names]
        if self.classes is None and extra:
            raise UserError(
                f"the {split} images have the class {extra[0]!r}, which no training image has."
                f"{did_you_mean(extra[0], self.class_names)}"
            )
        number = {name: i for i, name in enumerate(self.class_names)}
        labels = np.array([number.get(name, -1) for name in images.class_names])[images.labels]
        rows = np.flatnonzero(labels >= 0)
        if len(rows) == 0:
            raise UserError(
                f"the {split} images have none of the classes {', '.join(self.class_names[:10])}."
            )
        return ImageRows(images, rows, labels[rows], self.seed)

    def prepare(self, rows: Rows, split: str) -> Rows:
        """Limit the training images per class, and set how images are transformed."""
        assert isinstance(rows, ImageRows)
        if split == "train" and self.rows_per_class is not None:
            rng = np.random.default_rng(self.seed)
            shuffled = [rng.permutation(np.flatnonzero(rows.strata == c)) for c in range(self.num_classes)]
            rows = rows.subset(np.sort(np.concatenate([each[: self.rows_per_class] for each in shuffled])))
        rows.transform = self.augmented if split == "train" else self.plain
        return rows

    def collate(self, rows: list[tuple[torch.Tensor, int]]) -> Batch:
        """Return a batch."""
        return {
            "pixel_values": torch.stack([pixels for pixels, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        }


def _split_folders(
    sources: dict[str, TableSource | ImageArrays | None],
) -> dict[str, TableSource | ImageArrays | None]:
    """Find the splits of a folder that has a sub-folder for each."""
    train = sources["train"]
    if not isinstance(train, str) or not (Path(train).expanduser() / "train").is_dir():
        return sources
    root = Path(train).expanduser()
    found = dict(sources) | {"train": str(root / "train")}
    for split in ("validation", "test"):
        names = [name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()]
        if found[split] is None and names:
            found[split] = str(root / names[0])
    return found
