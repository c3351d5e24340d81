"""Test rows of instruction folders neither vanish nor change their label."""

import json

import pytest

from moe_adapt.errors import UserError
from moe_adapt.streams.instruction_folders import folder_task


def task(folder, train, test, **options):
    for name, labels in (("train", train), ("test", test)):
        lines = [json.dumps({"text": f"text {i}", "label": label}) for i, label in enumerate(labels)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder_task(folder, **options)


def test_an_unseen_label_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has the label 'science', which no training row has"):
        task(tmp_path, ["art", "sport"], ["sport", "science"])


def test_labels_that_become_the_same_words(tmp_path):
    with pytest.raises(
        UserError, match=r"'Card_arrival' and 'card arrival' in .* are both 'card arrival' in words"
    ):
        task(tmp_path, ["Card_arrival", "card arrival"], ["card arrival"])


def test_most_labels_takes_their_rows_only(tmp_path):
    found = task(tmp_path, ["a", "b", "c"], ["a", "c"], most_labels=2)
    assert [one.answer for one in (*found.train, *found.test)] == ["a", "b", "a"]


def test_numbers_in_both_kinds(tmp_path):
    found = task(tmp_path, [1, 2, 10], ["10", "1"])
    assert [one.answer for one in found.test] == ["10", "1"] and found.test[0].choices == ("1", "2", "10")
