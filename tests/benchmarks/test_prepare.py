"""The recipes' inputs: parsing of single rows everywhere, counts of the real files where they are present."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from moe_adapt.errors import UserError

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"
TEXT = (
    "Please choose the correct answer to the question: What does Answer3: mean?\n\n"
    "Answer1: a Answer2: b b Answer3: c\n\nAnswer format: answer1/answer2/answer3"
)


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))


@pytest.fixture
def data():
    folder = os.environ.get("MOE_ADAPT_DATA")
    if folder is None:
        pytest.skip("needs the raw data: set MOE_ADAPT_DATA")
    return Path(folder)


def test_question_is_split_from_the_right():
    from convert_text import parse_question

    row = parse_question({"instruction": TEXT, "answer": "answer2"}, "row 0")
    assert row["question"] == "What does Answer3: mean?"
    assert row["choices"] == ["a", "b b", "c"]
    assert (row["answer"], row["response"]) == (1, "b b")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Answer2: ", ""),
        ("Answer format", "Format"),
        ("answer1/answer2/answer3", "answer1/answer2"),
        ("b b", ""),
    ],
)
def test_a_row_that_does_not_parse_is_named(old, new):
    from convert_text import parse_question

    with pytest.raises(UserError, match="file, row 7"):
        parse_question({"instruction": TEXT.replace(old, new), "answer": "answer3"}, "file, row 7")


@pytest.mark.parametrize(
    ("name", "counts", "labels"),
    [
        ("clinc150", {"train": 15000, "validation": 3000, "test": 4500}, 150),
        ("banking77", {"train": 10003, "test": 3080}, 77),
    ],
)
def test_intent_counts(data, tmp_path, name, counts, labels):
    import prepare

    assert prepare.main(["--data", str(data), "--to", str(tmp_path), name]) == 0
    for split, count in counts.items():
        rows = [json.loads(line) for line in (tmp_path / name / f"{split}.jsonl").open(encoding="utf-8")]
        assert len(rows) == count
        assert len({row["label"] for row in rows}) == labels
        assert all(row["text"] for row in rows)


def test_yes_or_no_is_parsed():
    from convert_text import parse_yes_no

    text = "Please answer the following question with true or false, question: is ice hot?\n\n"
    row = {"instruction": text + "Answer format: true/false", "answer": "false"}
    found = {"question": "is ice hot?", "choices": ["yes", "no"], "answer": 1, "response": "no"}
    assert parse_yes_no(row, "row 0") == found
    with pytest.raises(UserError, match="row 3"):
        parse_yes_no(row | {"answer": "maybe"}, "row 3")


@pytest.mark.parametrize(
    ("name", "train", "test", "choices"),
    [
        ("arc_easy", 2251, 2376, {3, 4, 5}),
        ("arc_challenge", 1119, 1172, {3, 4, 5}),
        ("boolq", 9427, 3270, {2}),
        ("openbookqa", 4957, 500, {4}),
    ],
)
def test_question_counts(data, name, train, test, choices):
    from convert_text import TEXT_SETS

    splits = TEXT_SETS[name](data)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": train, "test": test}
    for row in splits["train"] + splits["test"]:
        assert len(row["choices"]) in choices
        assert row["choices"][row["answer"]] == row["response"]


def test_subset_keeps_the_bytes_of_each_image():
    from convert_images import subset

    packed = {
        "jpeg": np.arange(10, dtype=np.uint8),
        "offset": np.array([0, 3, 4, 8, 10]),
        "label": np.array([0, 2, 1, 0], dtype=np.int16),
        "wnid": np.array(["n0", "n1", "n2"]),
        "name": np.array(["a", "b", "c"]),
    }
    kept = subset(packed, 2)
    images = [kept["jpeg"][a:b].tolist() for a, b in zip(kept["offset"], kept["offset"][1:], strict=False)]
    assert images == [[0, 1, 2], [4, 5, 6, 7], [8, 9]]
    assert kept["label"].tolist() == [0, 1, 0]
    assert kept["name"].tolist() == ["a", "b"]
    with pytest.raises(UserError, match="has 3"):
        subset(packed, 4)


def test_tiny_imagenet_counts(data, tmp_path):
    from convert_images import tiny_imagenet

    assert tiny_imagenet(data, tmp_path, 5) == {"train": 500, "validation": 250}
    with np.load(tmp_path / "train.npz") as arrays:
        assert bytes(arrays["jpeg"][:2]) == b"\xff\xd8"
        assert arrays["offset"][-1] == len(arrays["jpeg"])


def test_vit_features_equal_the_source(data, tmp_path):
    import torch
    from convert_models import TIMM_VIT, vit_s14

    from moe_adapt.training.modules import ImageClassifier

    assert "difference" in vit_s14(data, tmp_path)
    weights = str(tmp_path / "model.safetensors")
    for pool in ("token", "avg"):
        options = {"img_size": 112, "depth": 10, "global_pool": pool}
        model = ImageClassifier.base_model(TIMM_VIT, 5, checkpoint=weights, model_kwargs=options)
        assert model(torch.zeros(1, 3, 112, 112)).shape == (1, 5)


def test_missing_raw_files_end_in_one_line(tmp_path, capsys):
    import prepare

    assert prepare.main(["--data", str(tmp_path), "--to", str(tmp_path), "banking77"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
