import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features

from moe_adapt.data.labels import LabelTable, column_of, encode_labels, infer_class_names, label_column
from moe_adapt.data.table import Table
from moe_adapt.errors import UserError


def table(labels, names=None):
    if names is None:
        return Table({"label": labels})
    return Dataset.from_dict({"label": labels}, features=Features({"label": ClassLabel(names=names)}))


def encode(labels, class_names, names=None):
    return encode_labels(table(labels, names), "label", class_names, "x.csv").tolist()


def coded(train, test, class_names=None):
    columns = [column_of(train, "train.csv"), column_of(test, "test.csv")]
    found = LabelTable(columns, class_names)
    return found.names, [found.names[number] for number in found.encode(columns[1])]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["b", "a", "b"], None, ["a", "b"]),
        ([2, 0, 1], None, ["0", "1", "2"]),
        ([10, 2], None, ["2", "10"]),
        (["40010", "40020", "1200000000"], None, ["40010", "40020", "1200000000"]),
        (["007", "012", "7"], None, ["007", "012", "7"]),
        ([True, False], None, ["false", "true"]),
        (list(np.array([3, 1])), None, ["1", "3"]),
        ([-1, 1], None, ["-1", "1"]),
        (["Cat", "cat", "c_at"], None, ["Cat", "c_at", "cat"]),
        ([1, 0], ["no", "yes", "maybe"], ["no", "yes", "maybe"]),
    ],
)
def test_class_names_by_kind(labels, names, expected):
    assert infer_class_names(table(labels, names), "label", "x.csv") == expected


def test_encoding_by_kind():
    assert encode(["b", "a"], ["a", "b"]) == [1, 0]
    assert encode([1, 0], ["a", "b"]) == encode(["1", "0"], ["a", "b"]) == [1, 0]
    assert encode([1, 0], ["1", "0"]) == [0, 1]
    assert encode([0, 1], ["yes", "no"], names=["no", "yes"]) == [1, 0]


@pytest.mark.parametrize("test", [["1", "2"], [1, 2], list(np.array([1, 2]))])
@pytest.mark.parametrize("train", [["1", "2", "3"], [1, 2, 3]])
def test_digits_are_the_same_classes_in_any_file(train, test):
    assert coded(train, test) == (["1", "2", "3"], ["1", "2"])


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        (["neg", "pos"], [0, 1], None),
        (["neg", "pos"], [0, 1], ["neg", "pos"]),
        ([0, 1], ["pos", "neg"], ["neg", "pos"]),
        ([0, 1], [2], None),
        ([0, 2], [1], None),
        ([1, 2], ["01"], None),
        (["cat", "dog"], ["Cat"], None),
        (["a b", "c"], ["a_b"], None),
    ],
)
def test_other_labels_are_an_error_never_a_shift(train, test, names):
    with pytest.raises(UserError, match=r"row 0 of '?t\w+.csv'? has the label '.*', which is none of the"):
        coded(train, test, names)
        coded(test, train, names)


def test_unseen_text_names_row_and_value():
    with pytest.raises(
        UserError, match=r"row 1 of 'x.csv' has the label 'nope', which is none of the 2 classes \(no, yes"
    ):
        encode(["no", "nope"], ["no", "yes"])


@pytest.mark.parametrize("label", [-1, 2])
def test_number_outside_range_is_none_of_the_classes(label):
    with pytest.raises(
        UserError, match=r"row 0 of 'x.csv' has the label '0', which is none of the 2 classes"
    ):
        encode([0, 1, label], ["a", "b"])


def test_unlabelled_split():
    with pytest.raises(UserError, match=r"row 0 of 'x.csv' has the label -1, outside 0..1 \(a test split"):
        encode([-1], ["a", "b"], names=["a", "b"])


@pytest.mark.parametrize("label", [0.5, None, [1], [0, 1], float("nan"), {"a": 1}, "", "  "])
def test_other_types(label):
    with pytest.raises(UserError, match=r"row 1 of 'x.csv' has .*: expected a text or a whole number"):
        infer_class_names(table(["a", label]), "label", "x.csv")


@pytest.mark.parametrize("labels", [[1, "a"], ["a", 1], ["01", 1], [True, 1], [True, "yes"]])
def test_mixed_labels(labels):
    with pytest.raises(UserError, match=r"the labels of 'x.csv' are mixed: .* \(row 0\) and .* \(row 1\)"):
        label_column(table(labels), "label", "x.csv")


def test_names_are_different():
    with pytest.raises(UserError, match=r"two classes of train.csv are called 'crane'"):
        LabelTable([column_of(["crane", "heron"], "train.csv")], ["crane", "heron", "crane"])


@pytest.mark.parametrize("names", [None, ["only"]])
def test_one_class_is_none(names):
    with pytest.raises(UserError, match="single class, 'only': a classifier needs two"):
        LabelTable([column_of(["only"] * 3, "train.csv")], names)
