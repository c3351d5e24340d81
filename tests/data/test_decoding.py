"""Images of every mode are right, or refused in one sentence."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from moe_adapt.data.decoding import decode
from moe_adapt.data.image_sources import ImageArrays, open_images
from moe_adapt.errors import UserError

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


def coded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("array", "form"),
    [
        ((RAMP * 255).astype(np.uint8), "PNG"),
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 65535).astype(np.uint16), "TIFF"),
        ((RAMP * 65535).astype(np.uint16), "PPM"),
        (RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_greys_are_scaled_by_their_type(array, form):
    found = decode(coded(Image.fromarray(array), form), "ramp").float()
    assert found.shape == (3, 32, 32)
    assert (found[0] - 255 * RAMP).abs().max() <= 1


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_in_either_order(order):
    mode = {"<u2": "I;16", ">u2": "I;16B"}[order]
    image = Image.frombytes(mode, (32, 32), (RAMP * 65535).astype(order).tobytes())
    assert (decode(coded(image, "TIFF"), "ramp")[0].float() - 255 * torch.from_numpy(RAMP)).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *(("L", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF")),
        *(("LA", "TIFF"), ("RGBA", "WEBP"), ("L", "BMP"), ("YCbCr", "TIFF"), ("P", "TIFF"), ("L", "PPM")),
    ],
)
def test_colours_of_other_modes(mode, form):
    grey = Image.fromarray((RAMP * 255).astype(np.uint8))
    options = {"quality": 100} if form == "JPEG" else {}
    found = decode(
        coded(
            grey.convert("LA")
            if mode == "LA"
            else grey.quantize()
            if mode == "P"
            else grey.convert("RGB").convert(mode),
            form,
            **options,
        ),
        "x",
    )
    assert (found[0].float() - np.asarray(grey)).abs().max() <= 8


def test_what_is_transparent_is_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    palette = Image.new("P", (4, 4), 0)
    assert decode(coded(image, "PNG"), "x").min() == 255
    assert decode(coded(palette, "PNG", transparency=0), "x").min() == 255


def test_exif_turns_the_image():
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode(coded(image, "PNG", exif=exif), "x").shape == (3, 2, 1)


def test_the_first_picture_of_an_animation():
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    assert decode(coded(first, "GIF", save_all=True, append_images=[second]), "x").max() == 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (coded(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"), "shares of white in"),
        (coded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "shares of white in"),
        (coded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "whose scale is unknown"),
        (coded(Image.fromarray((RAMP * 255).astype(np.uint8)), "PNG")[:-40], "x cannot be read as an image"),
        (coded(Image.new("1", (20_000, 20_000)), "PNG"), "x is too large"),
        (b"", "x cannot be read as an image"),
    ],
)
def test_refused_in_one_sentence(data, message):
    with pytest.raises(UserError, match=message) as caught:
        decode(data, "x")
    assert "\n" not in str(caught.value)


def tree(folder):
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), i).save(folder / name / f"{i}.png")
    return folder


def opened(folder):
    found = open_images(str(folder), "train", "image", "label")
    return found.class_names, len(found.labels)


@pytest.mark.parametrize(
    "place", [".ipynb_checkpoints", "ant/.ipynb_checkpoints", "__MACOSX", ".git/objects"]
)
def test_hidden_folders_are_no_classes(tmp_path, place):
    folder = tree(tmp_path / "images")
    (folder / place).mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / place / "copy.png")
    Image.new("L", (4, 4)).save(folder / "bee" / ".thumbnail.png")
    (folder / "empty").mkdir()
    assert opened(folder) == (["ant", "bee"], 6)


def test_a_class_whose_images_are_of_another_kind(tmp_path):
    folder = tree(tmp_path / "images")
    (folder / "cat").mkdir()
    (folder / "cat" / "0.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cat has 1 files, such as 0.heic, but none ends in"):
        opened(folder)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([[0], [1]], None, r"have the shape \[2, 1\]: expected \[N\]"),
        ([[1, 0], [0, 1]], None, r"have the shape \[2, 2\]: expected \[N\]"),
        ([0.5, 1.0], None, "expected a text or a whole number"),
        ([0, 2], ["a", "b"], "row 1 .* has the label 2, outside 0..1"),
        ([0, 1], ["a", "a"], "two classes .* are called 'a'"),
    ],
)
def test_labels_of_arrays(labels, names, message):
    with pytest.raises(UserError, match=message):
        open_images(ImageArrays(np.zeros((2, 4, 4), np.uint8), np.array(labels), names), "train", "", "")


def test_names_of_classes_in_a_file(tmp_path):
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])
    np.savez(tmp_path / "a.npz", images=images, label=labels, name=np.array([b"ant", b"bee"]))
    assert open_images(str(tmp_path / "a.npz"), "train", "", "").class_names == ["ant", "bee"]
    np.savez(tmp_path / "a.npz", images=images, label=labels, name=np.array([["ant"], ["bee"]]))
    with pytest.raises(UserError, match=r"of the shape \[2, 1\]: expected texts"):
        open_images(str(tmp_path / "a.npz"), "train", "", "")


def test_a_large_number_is_a_code():
    arrays = ImageArrays(np.zeros((2, 4, 4), np.uint8), np.array([7, 1_200_000_000]))
    assert open_images(arrays, "train", "", "").class_names == ["7", "1200000000"]
