import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from moe_adapt.errors import UserError
from moe_adapt.streams import ArrayStream, ImageStream, TextStream


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(classes="abcd", each=6, text="{} says {}"):
    return [{"text": text.format(c, i), "label": c} for i in range(each) for c in classes]


def write(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def pictures(classes=4, each=5, size=12):
    labels = np.tile(np.arange(classes), each)
    values = (50 * labels).astype(np.uint8)
    return np.broadcast_to(values[:, None, None], (len(labels), size, size)).copy(), labels


def test_texts_from_a_file(tmp_path, tokenizer):
    train, test = write(tmp_path / "train.jsonl", rows()), write(tmp_path / "test.jsonl", rows(each=2))
    stream = TextStream(tokenizer, train, test, increment=2, order=["d", "a", "c", "b"])
    task = stream.task(1)
    assert stream.class_names == ["d", "a", "c", "b"]
    assert set(task.train.labels.tolist()) == {2, 3}
    batch = task.collate([task.train[0], task.train[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert stream.manifest()["train"].endswith("train.jsonl")
    assert stream.manifest()["test_sizes"] == [4, 4]


def test_texts_without_a_test_file_hold_some_out(tokenizer):
    stream = TextStream(tokenizer, rows(each=10), increment=2, test_fraction=0.3)
    assert stream.manifest()["train_sizes"] == [14, 14]
    assert stream.manifest()["test_sizes"] == [6, 6]
    assert not set(stream.train_rows[0]) & set(stream.test_rows[0]) or stream.train is not stream.test


def test_texts_of_several_domains(tokenizer):
    domains = {"shop": rows("ab"), "bank": rows("ba", text="{} pays {}")}
    stream = TextStream(tokenizer, domains, scenario="domain", order=["shop", "bank"])
    assert stream.task_names == ["shop", "bank"]
    assert stream.num_seen == [2, 2]
    assert stream.manifest()["test_sizes"] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "txt"}, "no column 'txt'.*Did you mean 'text'"),
        ({"label_column": "lable"}, "no column 'lable'"),
        ({"test": rows("abx")}, "class 'x'"),
        ({"test": rows("ab")}, "2 of 4 classes have no test row"),
        ({"test_fraction": 1.0}, "test_fraction must be"),
        ({"classes": ["a", "q"]}, "no class 'q'"),
        ({"train_per_class": 0}, "at least 1"),
    ],
)
def test_bad_texts(tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        TextStream(tokenizer, rows(), **{"increment": 2, **options})


def npz(tmp_path, kind):
    images, labels = pictures()
    path = tmp_path / f"{kind}.npz"
    names = np.array(["p", "q", "r", "s"])
    if kind == "arrays":
        np.savez(path, images=images, label=labels, name=names)
    elif kind == "bits":
        bits = np.packbits((images > 60).reshape(len(labels), -1), axis=1)
        np.savez(path, bits=bits, shape=[12, 12], label=labels, name=names)
    else:
        import io

        encoded = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
        offset = np.concatenate([[0], np.cumsum([len(each) for each in encoded])])
        np.savez(path, jpeg=np.concatenate(encoded), offset=offset, label=labels, name=names)
    return str(path)


@pytest.mark.parametrize("kind", ["arrays", "bits", "jpeg"])
def test_images_packed_in_a_file(tmp_path, kind):
    source = npz(tmp_path, kind)
    stream = ImageStream(source, increment=2, order_seed=None, image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    sample = stream.task(1).train.plain()[0]
    assert sample["pixel_values"].shape == (3, 8, 8)
    shade = "pqrs".index(stream.class_names[sample["labels"]])
    expected = 1.0 if kind == "bits" else 50 * shade / 255
    assert sample["pixel_values"].mean() == pytest.approx(expected, abs=0.01)
    assert sorted(stream.class_names) == ["p", "q", "r", "s"]


def test_images_of_a_torch_data_set_and_a_folder(tmp_path):
    images, labels = pictures()

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            return Image.fromarray(images[index]), int(labels[index])

    own = ImageStream(Pairs(), increment=2, order_seed=None, image_size=8, augment=False)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / ("train" if index % 5 else "test") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    both = ImageStream(str(tmp_path), increment=2, order_seed=None, image_size=8, augment=False)
    assert sorted(both.class_names) == ["0", "1", "2", "3"]
    assert sorted(own.class_names) == ["0", "1", "2", "3"]
    assert torch.equal(own.task(0).train[0]["pixel_values"], both.task(0).train[0]["pixel_values"])
    assert both.manifest()["test_sizes"] == [2, 2]


def test_images_by_a_library_name(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'CIFAR10"):
        ImageStream(f"torchvision:CIFAR1O0@{tmp_path}", increment=2)
    with pytest.raises(UserError, match="cannot be opened"):
        ImageStream(f"torchvision:CIFAR100@{tmp_path}", increment=2)


def test_augmentation_follows_from_epoch_and_row(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.npz"
    np.savez(path, images=rng.integers(256, size=(8, 16, 16), dtype=np.uint8), label=np.tile([0, 1], 4))
    train = ImageStream(str(path), increment=1, image_size=8).task(0).train
    first = train[0]["pixel_values"]
    assert torch.equal(first, train[0]["pixel_values"])
    train.set_epoch(1)
    assert not torch.equal(first, train[0]["pixel_values"])
    assert torch.equal(train.plain()[0]["pixel_values"], train.plain()[0]["pixel_values"])


def test_feature_arrays(tmp_path):
    y = np.tile([0, 1, 2], 4)
    arrays = {"x_train": np.eye(12), "y_train": y, "x_test": np.eye(12)[:6], "y_test": y[:6]}
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    for source in (arrays, str(path)):
        stream = ArrayStream(source, increment=1)
        assert stream.task(0).train[0]["features"].shape == (12,)
    with pytest.raises(UserError, match="lacks the arrays y_test"):
        ArrayStream({key: arrays[key] for key in ("x_train", "y_train", "x_test")}, increment=1)
    with pytest.raises(UserError, match=r"expected \[N, d\]"):
        ArrayStream({**arrays, "x_test": np.eye(12)}, increment=1)
