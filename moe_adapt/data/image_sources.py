"""Where images come from: class folders, arrays, packed JPEGs, or a table with an image column.

Every source has class numbers, class names and `read`, which returns one image as uint8 [3,H,W] in RGB.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from moe_adapt.data.decoding import decode, to_rgb
from moe_adapt.data.labels import (
    check_names,
    class_numbers,
    label_column,
    number_labels,
    written_names,
)
from moe_adapt.data.libraries import LIBRARIES, library_dataset
from moe_adapt.data.tables import TableSource, describe, is_saved_table, load_table, require_columns
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.extras import LazyModule
from moe_adapt.reading import foreign

__all__ = [
    "ArrayImages",
    "BitImages",
    "FolderImages",
    "ImageArrays",
    "ImageSource",
    "PackedImages",
    "TableImages",
    "choose_classes",
    "open_images",
]

Image = LazyModule("PIL.Image")

_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageArrays:
    """Images in memory.

    Attributes:
        images: uint8 [N,H,W], [N,H,W,1] or [N,H,W,3].
        labels: Class numbers [N].
        class_names: Names of the classes [C]; None numbers them.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str] | None = None


class ImageSource(ABC):
    """Images with class numbers.

    Args:
        labels: Class number of each image, [N].
        class_names: Names of the classes, [C]; None names them by the labels.
        where: How messages call the source.

    Raises:
        UserError: If there are no images, two classes share a name, or a label is not one of 0..C-1.
    """

    def __init__(self, labels: np.ndarray, class_names: Sequence[str] | None, where: str) -> None:
        if len(labels) == 0:
            raise UserError(f"{where} has no images.")
        self.labels, self.class_names = class_numbers(labels, class_names, where)
        check_names(self.class_names, where)

    @abstractmethod
    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W].

        Raises:
            UserError: If it cannot be decoded; the message names it.
        """

    def raw(self, row: int) -> bytes:
        """Return the bytes that make one image, encoded or not."""
        return self.read(row).numpy().tobytes()


class DatasetImages(ImageSource):
    """A map-style data set of (image, label), such as those of torchvision and timm.

    Labels come from ``targets`` or ``labels``; without either every item is read once. Names come from
    ``classes``; those that are repeated (ImageNet has two cranes) get the number of their class.

    Args:
        dataset: The data set, without a transform or with one that keeps images uint8.
    """

    def __init__(self, dataset: Any) -> None:
        known = getattr(dataset, "targets", getattr(dataset, "labels", None))
        labels = np.asarray([int(dataset[i][1]) for i in range(len(dataset))] if known is None else known)
        classes = getattr(dataset, "classes", None)
        names = None if classes is None else _told_apart([_words(name) for name in classes])
        super().__init__(labels, names, f"the data set {type(dataset).__name__}")
        self.dataset = dataset

    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W]."""
        image = self.dataset[row][0]
        if isinstance(image, Image.Image):
            return to_rgb(image, f"image {row} of the data set")
        pixels = torch.as_tensor(np.asarray(image))
        if pixels.dtype != torch.uint8 or pixels.ndim not in (2, 3):
            raise UserError(
                f"image {row} is {pixels.dtype} of shape {tuple(pixels.shape)}: expected a PIL image or "
                "uint8 [H,W], [C,H,W]; take the transform out of the data set."
            )
        pixels = pixels if pixels.ndim == 3 else pixels[None]
        return pixels if pixels.shape[0] == 3 else pixels[:1].expand(3, -1, -1).contiguous()


class FolderImages(ImageSource):
    """One sub-folder per class, the classes in the order of their names.

    Hidden files and folders (``.ipynb_checkpoints``) and ``__MACOSX`` are left out; an empty folder is no
    class.

    Args:
        folder: The folder.

    Raises:
        UserError: If there are no images, or the folder of a class has files, but no image among them.
    """

    def __init__(self, folder: Path) -> None:
        classes: list[str] = []
        self.files: list[Path] = []
        labels: list[int] = []
        for path in sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)):
            inside = [
                file
                for file in sorted(path.rglob("*"))
                if file.is_file() and not any(map(_hidden, file.relative_to(path).parts))
            ]
            found = [file for file in inside if file.suffix.lower() in _EXTENSIONS]
            if inside and not found:
                raise UserError(
                    f"the class folder {path} has {len(inside)} files, such as {inside[0].name}, but "
                    "none ends in "
                    f"{', '.join(sorted(_EXTENSIONS))}: convert them, or move the folder away."
                )
            if found:
                labels += [len(classes)] * len(found)
                classes.append(path.name)
                self.files += found
        super().__init__(
            np.array(labels, dtype=np.int64),
            classes,
            f"the folder {folder} (expected one sub-folder per class)",
        )

    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W]."""
        return decode(self.files[row], str(self.files[row]))

    def raw(self, row: int) -> bytes:
        """Return the bytes of one file."""
        return self.files[row].read_bytes()


class ArrayImages(ImageSource):
    """Images in an array."""

    def __init__(self, arrays: ImageArrays, where: str = "the arrays given in memory") -> None:
        images = np.asarray(arrays.images)
        if images.dtype != np.uint8 or not (
            images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        ):
            raise UserError(
                f"{where} hold images of shape {list(images.shape)} and type {images.dtype}: "
                "expected uint8 [N,H,W], [N,H,W,1] or [N,H,W,3]."
            )
        if len(images) != len(arrays.labels):
            raise UserError(
                f"{where} hold {len(images)} images and {len(arrays.labels)} labels: expected as many."
            )
        self.images = images[..., None] if images.ndim == 3 else images
        super().__init__(arrays.labels, arrays.class_names, where)

    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W]."""
        return torch.from_numpy(self.images[row]).permute(2, 0, 1).expand(3, -1, -1).contiguous()


class PackedImages(ImageSource):
    """Encoded images one after the other in one array of bytes.

    Args:
        data: All bytes, uint8 [total].
        offset: Image i is ``data[offset[i]:offset[i + 1]]``, [N + 1].
        labels: Class numbers [N].
        class_names: Names of the classes [C].
        where: How messages call the source.
    """

    def __init__(
        self,
        data: np.ndarray,
        offset: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None,
        where: str,
    ) -> None:
        super().__init__(labels, class_names, where)
        bounds = [0, *np.asarray(offset).reshape(-1).tolist(), len(data)]
        if offset.shape != (len(self.labels) + 1,) or bounds != sorted(bounds) or data.ndim != 1:
            raise UserError(
                f"{where}: offset {list(offset.shape)} does not cut {list(data.shape)} bytes into "
                f"{len(self.labels)} images; write the file again."
            )
        self.data = data
        self.offset = offset
        self.where = where

    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W]."""
        return decode(self.raw(row), f"image {row} of {self.where}")

    def raw(self, row: int) -> bytes:
        """Return one encoded image."""
        return self.data[self.offset[row] : self.offset[row + 1]].tobytes()


class BitImages(ImageSource):
    """Black-and-white images, eight pixels per byte; a set bit is white.

    Args:
        bits: Packed pixels as `numpy.packbits` writes them, uint8 [N, ceil(H W / 8)].
        shape: Height and width.
        labels: Class numbers [N].
        class_names: Names of the classes [C].
        where: How messages call the source.
    """

    def __init__(
        self,
        bits: np.ndarray,
        shape: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None,
        where: str,
    ) -> None:
        super().__init__(labels, class_names, where)
        self.bits = bits
        if np.shape(shape) != (2,):
            raise UserError(f"{where}: shape is {shape!r}, expected height and width.")
        self.height, self.width = map(int, shape)
        if bits.shape != (len(self.labels), -(-self.height * self.width // 8)):
            raise UserError(f"{where}: bits of the shape {bits.shape} do not hold images of {tuple(shape)}.")

    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W]."""
        pixels = np.unpackbits(self.bits[row])[: self.height * self.width]
        return (
            torch.from_numpy(255 * pixels.reshape(1, self.height, self.width)).expand(3, -1, -1).contiguous()
        )


class TableImages(ImageSource):
    """A table with an image column (the ``Image`` feature, file paths, encoded bytes or Pillow images)."""

    def __init__(self, source: TableSource, split: str, image_column: str, label_column_: str) -> None:
        table = load_table(source, split)
        require_columns(table, [image_column, label_column_], source)
        labels, names = number_labels(label_column(table, label_column_, source))
        super().__init__(labels, names, describe(source))
        if isinstance(table, datasets.Dataset):
            table = table.cast_column(image_column, datasets.Image(decode=False))
        self.images = table
        self.image_column = image_column

    def read(self, row: int) -> torch.Tensor:
        """Return one image, uint8 [3,H,W]."""
        image = self.images[row][self.image_column]
        name = f"the image of row {row}"
        if isinstance(image, Image.Image):
            return to_rgb(image, name)
        found = image if isinstance(image, dict) else {"bytes" if isinstance(image, bytes) else "path": image}
        data, path = found.get("bytes"), found.get("path")
        if not isinstance(data, bytes) and not isinstance(path, str):
            raise UserError(f"{name} is {str(image)[:60]!r}: expected a path, bytes or an image.")
        return decode(data if isinstance(data, bytes) else Path(str(path)), path or name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _words(name: Any) -> str:
    """Return the name of a class; ImageNet's are tuples of synonyms."""
    return ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)


def _told_apart(names: list[str]) -> list[str]:
    """Return names without repetition.

    >>> _told_apart(["crane", "heron", "crane"])
    ['crane (0)', 'heron', 'crane (2)']
    """
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _open_npz(path: Path) -> ImageSource:
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    with foreign(path, "an .npz file of plain arrays"), np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
        names = written_names(arrays["name"], str(path)) if "name" in arrays else None
    if {"jpeg", "offset", "label"} <= arrays.keys():
        return PackedImages(arrays["jpeg"], arrays["offset"], arrays["label"], names, str(path))
    if {"bits", "shape", "label"} <= arrays.keys():
        return BitImages(arrays["bits"], arrays["shape"], arrays["label"], names, str(path))
    if {"images", "label"} <= arrays.keys():
        return ArrayImages(ImageArrays(arrays["images"], arrays["label"], names), str(path))
    raise UserError(
        f"{path} has the arrays {', '.join(arrays)}: expected images and label, or jpeg, offset and label, "
        "or bits, shape and label."
    )


def open_images(
    source: TableSource | ImageArrays, split: str, image_column: str, label_column: str
) -> ImageSource:
    """Open a source of images.

    Args:
        source: A folder of class folders, an ``.npz`` file, arrays, a table with an image column, a data set
            of torchvision or timm (``torchvision:CIFAR100@FOLDER``), or any map-style one of (image, label).
        split: The split to take if a source has several.
        image_column: Column of the image in a table.
        label_column: Column of the label in a table.

    Raises:
        UserError: If there is no such source, it has no images, or a label is outside its classes.
    """
    if isinstance(source, ImageArrays):
        return ArrayImages(source)
    if isinstance(source, str) and source.partition(":")[0] in LIBRARIES:
        source = library_dataset(source, split)
    if isinstance(source, torch.utils.data.Dataset) and not isinstance(source, datasets.Dataset):
        return DatasetImages(source)
    path = Path(source).expanduser() if isinstance(source, str) else None
    if path is not None and path.suffix == ".npz":
        return _open_npz(path)
    if path is not None and path.is_dir() and not is_saved_table(path):
        return FolderImages(path)
    return TableImages(source, split, image_column, label_column)


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
