import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PIL

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules import ImageArrays, ImageClassificationData

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
PLAIN = {"image_size": 8, "batch_size": 4, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def picture(name: str, size: tuple[int, int] = (12, 10)) -> PIL.Image:
    return PIL.new("RGB", size, COLOURS[name])


def class_folders(root: Path, count: int = 4) -> Path:
    for name in COLOURS:
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(name).save(root / name / f"{i}.png")
    return root


def arrays(count: int = 4) -> ImageArrays:
    images = [np.asarray(picture(name)) for name in COLOURS for _ in range(count)]
    return ImageArrays(np.stack(images), np.arange(3 * count) // count, list(COLOURS))


def packed(path: Path, count: int = 4) -> str:
    data = []
    for name in COLOURS:
        picture(name).save(path.parent / "one.jpg", quality=95)
        data += [np.frombuffer((path.parent / "one.jpg").read_bytes(), np.uint8)] * count
    offset = np.cumsum([0, *map(len, data)])
    np.savez(
        path,
        jpeg=np.concatenate(data),
        offset=offset,
        label=np.arange(3 * count) // count,
        name=np.array([*COLOURS]),
    )
    return str(path)


def table(root: Path) -> Dataset:
    files = [str(file) for file in sorted(class_folders(root).rglob("*.png"))]
    features = Features({"image": Image(), "label": Value("string")})
    return Dataset.from_dict(
        {"image": files, "label": [Path(f).parent.name for f in files]}, features=features
    )


def source(kind: str, folder: Path):
    if kind == "folder":
        return str(class_folders(folder / "images"))
    if kind == "arrays":
        return arrays()
    if kind == "array file":
        held = arrays()
        np.savez(folder / "a.npz", images=held.images, label=held.labels, name=np.array(held.class_names))
        return str(folder / "a.npz")
    if kind == "packed file":
        return packed(folder / "p.npz")
    return table(folder / "images")


def fitted(train, **options) -> ImageClassificationData:
    data = ImageClassificationData(train, **PLAIN | options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("kind", ["folder", "arrays", "array file", "packed file", "table"])
def test_every_source_gives_the_same_batches(tmp_path, kind):
    data = fitted(source(kind, tmp_path), validation_fraction=0.25)
    assert data.class_names == ["blue", "green", "red"] and data.num_classes == 3
    assert [len(data.splits[s]) for s in ("train", "validation")] == [9, 3]
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert batch["pixel_values"].shape[1:] == (3, 8, 8) and batch["pixel_values"].dtype == torch.float32
        expected = torch.eye(3).flip(1)[batch["labels"]][:, :, None, None].expand_as(batch["pixel_values"])
        torch.testing.assert_close(batch["pixel_values"], expected, atol=0.02, rtol=0)


def test_normalisation():
    data = fitted(arrays(), validation=arrays(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), augment=False)
    values = next(iter(data.val_dataloader()))["pixel_values"][0, :, 0, 0]
    torch.testing.assert_close(values, torch.tensor([-2.0, -1.0, 0.5]))


def test_grey_arrays():
    images = np.full((20, 6, 6), 51, np.uint8)
    batch = next(iter(fitted(ImageArrays(images, np.arange(20) % 2)).train_dataloader()))
    torch.testing.assert_close(batch["pixel_values"], torch.full((4, 3, 8, 8), 0.2))


def test_split_folders(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        class_folders(tmp_path / split, count)
    data = fitted(str(tmp_path))
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [12, 6, 3]


@pytest.mark.parametrize(("classes", "names"), [(2, ["blue", "green"]), (["red", "blue"], ["red", "blue"])])
def test_class_subset(classes, names):
    data = fitted(arrays(), validation=arrays(2), classes=classes)
    assert data.class_names == names
    assert [len(data.splits[s]) for s in ("train", "validation")] == [8, 4]
    batch = next(iter(data.val_dataloader()))
    channel = batch["pixel_values"].mean((2, 3)).argmax(1)
    assert [list(COLOURS)[2 - c] for c in channel.tolist()] == [names[label] for label in batch["labels"]]


def test_rows_per_class():
    data = fitted(arrays(), validation=arrays(), rows_per_class=2)
    assert np.bincount(data.splits["train"].strata).tolist() == [2, 2, 2]
    assert len(data.splits["validation"]) == 12


def noise(rows: int = 12) -> ImageArrays:
    return ImageArrays(
        np.random.default_rng(0).integers(0, 256, (rows, 9, 9, 3), dtype=np.uint8), np.arange(rows) % 3
    )


def test_augmentation_is_a_function_of_seed_epoch_and_row():
    """The same with worker processes and whatever the global random state; other pixels in the next epoch."""

    def pixels(epoch=0, **options):
        data = fitted(noise(), validation=noise(), **options)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        torch.manual_seed(len(options))
        return torch.cat([batch["pixel_values"] for batch in loader]).sort(0).values

    first = pixels()
    assert torch.equal(first, pixels(num_workers=2))
    assert not torch.equal(first, pixels(epoch=1))
    assert not torch.equal(first, pixels(seed=1))


def test_validation_is_not_augmented_and_draws_nothing():
    data = fitted(noise(), validation_fraction=0.5)
    before = torch.get_rng_state()
    once = [batch["pixel_values"] for batch in data.val_dataloader()]
    assert all(torch.equal(a, b["pixel_values"]) for a, b in zip(once, data.val_dataloader(), strict=True))
    list(data.train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_is_named(tmp_path, num_workers):
    folder = class_folders(tmp_path / "images")
    (folder / "red" / "0.png").write_bytes(b"not a picture")
    data = fitted(str(folder), validation=arrays(), num_workers=num_workers)
    with pytest.raises(UserError, match=r"red/0.png cannot be read as an image: remove or replace it"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (ImageArrays(np.zeros((2, 4, 4, 3)), np.zeros(2, int)), {}, r"shape \[2, 4, 4, 3\] and type float64"),
        (ImageArrays(np.zeros((2, 4, 4), np.uint8), np.zeros(3, int)), {}, "hold 2 images and 3 labels"),
        (
            ImageArrays(np.zeros((2, 4, 4), np.uint8), np.array([0, -1])),
            {},
            "row 1 .* has the label -1: class numbers are from 0",
        ),
        (
            ImageArrays(np.zeros((2, 4, 4), np.uint8), np.array([0, 2]), ["a", "b"]),
            {},
            "has the label 2, outside 0..1",
        ),
        (ImageArrays(np.zeros((0, 4, 4), np.uint8), np.zeros(0, int)), {}, "has no images"),
        (arrays(), {"classes": 4}, "classes must be from 1 to 3"),
        (arrays(), {"classes": ["blu"]}, "there is no class 'blu'. Did you mean 'blue'"),
        (arrays(), {"rows_per_class": 0}, "rows_per_class must be at least 1"),
        (arrays(), {"crop_scale": 0.0}, "crop_fraction and crop_scale must be in"),
        ("missing.npz", {}, "there is no file missing.npz"),
        ([{"picture": "a.png", "label": 0}], {}, "has no column 'image'"),
    ],
)
def test_mistakes(train, options, message):
    with pytest.raises(UserError, match=message):
        fitted(train, **options)


def test_validation_with_an_unknown_class(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val")
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rad")
    with pytest.raises(
        UserError, match="the validation images have the class 'rad', which no training image has"
    ):
        fitted(str(tmp_path))


def test_empty_folder_and_foreign_arrays(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected one sub-folder per class\) has no images"):
        fitted(str(tmp_path / "empty"))
    (tmp_path / "broken.npz").write_bytes(b"PK and no more")
    with pytest.raises(UserError, match=r"broken.npz is damaged or not an .npz file"):
        fitted(str(tmp_path / "broken.npz"))
    np.savez(tmp_path / "x.npz", x=np.zeros(1))
    with pytest.raises(UserError, match="has the arrays x: expected images and label"):
        fitted(str(tmp_path / "x.npz"))


@pytest.mark.skipif("MOE_ADAPT_DATA" not in os.environ, reason="MOE_ADAPT_DATA names no folder of real data")
def test_tiny_imagenet():
    folder = Path(os.environ["MOE_ADAPT_DATA"], "tiny-imagenet-200")
    data = fitted(
        f"{folder}/train_100_per_class.npz",
        validation=f"{folder}/val_50_per_class.npz",
        classes=20,
        image_size=64,
    )
    assert data.num_classes == 20 and data.class_names[0] == "goldfish, Carassius auratus"
    assert [len(data.splits[s]) for s in ("train", "validation")] == [2000, 1000]
    assert next(iter(data.train_dataloader()))["pixel_values"].shape == (4, 3, 64, 64)
    data = fitted(f"{folder}/val_50_per_class.npz", rows_per_class=2)
    assert data.num_classes == 200 and len(data.splits["train"]) == 400
