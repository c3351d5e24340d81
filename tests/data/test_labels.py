import pytest
from datasets import ClassLabel, Dataset, Features, Value

from moe_adapt.data.labels import encode_labels, infer_class_names
from moe_adapt.errors import UserError


def table(labels, names=None):
    features = Features({"label": ClassLabel(names=names)}) if names else None
    return Dataset.from_dict({"label": labels}, features=features)


def encode(labels, class_names, names=None):
    return encode_labels(table(labels, names), "label", class_names, "x.csv").tolist()


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["b", "a", "b"], None, ["a", "b"]),
        ([2, 0], None, ["0", "1", "2"]),
        ([1, 0], ["no", "yes", "maybe"], ["no", "yes", "maybe"]),
    ],
)
def test_class_names_by_kind(labels, names, expected):
    assert infer_class_names(table(labels, names), "label", "x.csv") == expected


def test_encoding_by_kind():
    assert encode(["b", "a"], ["a", "b"]) == [1, 0]
    assert encode([1, 0], ["a", "b"]) == [1, 0]
    assert encode([0, 1], ["yes", "no"], names=["no", "yes"]) == [1, 0]


def test_unseen_text_names_row_and_value():
    with pytest.raises(
        UserError, match=r"row 1 of 'x.csv' has the label 'nope', which is none of the 2 classes"
    ):
        encode(["no", "nope"], ["no", "yes"])


@pytest.mark.parametrize("label", [-1, 2])
def test_number_outside_range_names_row_and_value(label):
    with pytest.raises(
        UserError, match=rf"row 2 of 'x.csv' has the label {label}, outside 0..1 for 2 classes"
    ):
        encode([0, 1, label], ["a", "b"])


def test_unlabelled_split():
    with pytest.raises(UserError, match=r"row 0 of 'x.csv' has the label -1, outside 0..1 \(a test split"):
        encode([-1], ["a", "b"], names=["a", "b"])


@pytest.mark.parametrize("labels", [[0.5], [None]])
def test_other_types(labels):
    data = Dataset.from_dict({"label": labels}, features=Features({"label": Value("float32")}))
    with pytest.raises(
        UserError, match=r"row 0 of 'x.csv' has the label .*: expected a text or a whole number"
    ):
        infer_class_names(data, "label", "x.csv")
