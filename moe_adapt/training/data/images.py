"""Images with one label each, scaled, normalised and lightly augmented.

The random crop and flip of an image follow from (seed, epoch, row) alone: worker processes and resumed runs
see the same pixels as an uninterrupted run in one process.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2

from moe_adapt.data.image_sources import ImageArrays, ImageSource, open_images
from moe_adapt.data.tables import SourceOption, TableSource
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.training.data.base import Batch, SeededDataModule
from moe_adapt.training.data.rows import Rows

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageClassificationData", "ImageRows", "choose_classes"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

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
        before = torch.default_generator.get_state()
        draw = np.random.SeedSequence([self.seed, self.epoch, row]).generate_state(1, np.uint64)[0]
        torch.default_generator.manual_seed(int(draw >> np.uint64(1)))
        pixels = self.transform(image)
        torch.default_generator.set_state(before)
        return pixels, int(self.strata[row])


def choose_classes(names: list[str], classes: int | list[str] | None) -> list[str]:
    """Return the chosen class names: all, the first n, or those listed.

    Raises:
        UserError: If there are fewer than n, or a listed one does not exist.

    >>> choose_classes(["ant", "bee", "cat"], 2)
    ['ant', 'bee']
    """
    if classes is None:
        return names
    if isinstance(classes, int):
        if not 1 <= classes <= len(names):
            raise UserError(f"classes must be from 1 to {len(names)}, the number of classes, got {classes}.")
        return names[:classes]
    for name in classes:
        if name not in names:
            raise UserError(f"there is no class {name!r}.{did_you_mean(name, names)}")
    return list(classes)


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
        if not 0 < crop_fraction <= 1 or not 0 < crop_scale <= 1:
            raise UserError(
                f"crop_fraction and crop_scale must be in (0, 1], got {crop_fraction} and {crop_scale}."
            )
        self.image_column = image_column
        self.label_column = label_column
        self.classes = classes
        self.rows_per_class = rows_per_class
        self.class_names: list[str] = []
        finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        resize = v2.Resize(round(image_size / crop_fraction), antialias=True)
        self.plain = v2.Compose([resize, v2.CenterCrop(image_size), *finish])
        crop = v2.RandomResizedCrop(image_size, scale=(crop_scale, 1.0), antialias=True)
        self.augmented = v2.Compose([crop, v2.RandomHorizontalFlip(), *finish]) if augment else self.plain

    @property
    def num_classes(self) -> int:
        """Number of classes; known after `setup`."""
        return len(self.class_names)

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
                f"the {split} images have the class {extra[0]!r}, which the training images have not."
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
