import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.streams import Labelled, TaskStream, class_order, incremental_stream, task_sizes
from moe_adapt.streams.arrays import Vectors

PINS = {
    50: [43, 41, 23, 14, 13, 40, 42, 22, 16, 45],
    100: [68, 56, 78, 8, 23, 84, 90, 65, 74, 76],
    200: [168, 136, 51, 9, 183, 101, 171, 99, 42, 159],
    300: [169, 221, 146, 296, 92, 229, 49, 70, 126, 77],
    1000: [54, 7, 894, 512, 126, 337, 988, 11, 284, 493],
}


@pytest.mark.parametrize(("classes", "expected"), PINS.items())
def test_order_of_the_literature(classes, expected):
    assert class_order(classes, 1993)[:10].tolist() == expected


def test_sizes():
    assert len(task_sizes(1000, 3, first=100)) == 301
    assert len(task_sizes(1000, 6, first=100)) == 151
    assert task_sizes(10, 3) == [3, 3, 3, 1]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 60))
def test_no_class_is_dropped(classes, increment, first):
    if increment > classes or first > classes:
        with pytest.raises(UserError, match="increment must be"):
            task_sizes(classes, increment, first)
    else:
        sizes = task_sizes(classes, increment, first)
        assert sum(sizes) == classes
        assert min(sizes) > 0


def labelled(labels, domains=None) -> Labelled:
    labels = np.asarray(labels)
    return Labelled(Vectors(torch.arange(len(labels)).float()[:, None]), labels, domains)


def stream(classes=6, per_class=4, **options) -> TaskStream:
    labels = np.tile(np.arange(classes), per_class)
    names = [f"c{label}" for label in range(classes)]
    return incremental_stream(labelled(labels), labelled(labels), names, **options)


def test_labels_lead_back_to_the_source():
    made = stream(increment=2)
    order = class_order(6, 1993)
    assert made.class_names == [f"c{label}" for label in order]
    for index in range(3):
        task = made.task(index)
        assert task.classes == (2 * index, 2 * index + 1)
        assert task.num_seen == 2 * index + 2
        for sample in (task.train[0], task.train[5]):
            source = int(sample["features"][0]) % 6
            assert made.class_names[sample["labels"]] == f"c{source}"


def test_named_order_and_source_order():
    names = ["c3", "c0", "c5", "c1", "c2", "c4"]
    assert stream(increment=4, order=names).class_names == names
    assert stream(increment=4, order_seed=None).class_names == [f"c{i}" for i in range(6)]


def test_test_rows_come_with_their_class_ordered_by_task():
    examples, tasks = stream(increment=2).test_until(1)
    assert tasks.tolist() == [0] * 8 + [1] * 8
    assert (examples.labels // 2 == tasks).all()
    within = stream(increment=2).test_classes(1)
    assert within.tolist() == [[True, True, False, False], [False, False, True, True]]


def test_many_rows_at_once_equal_rows_one_by_one():
    made = stream(increment=3)
    task = made.task(1)
    batch = task.collate(task.train.__getitems__([3, 0, 7]))
    single = [task.train[index] for index in (3, 0, 7)]
    for key in ("features", "row", "labels"):
        assert batch[key].tolist() == [np.asarray(sample[key]).tolist() for sample in single]


def test_domains_bring_the_classes_back():
    labels = np.tile(np.arange(2), 6)
    domains = np.repeat(np.array(["b", "a", "c"], dtype=object), 4)
    data = labelled(labels, domains)
    made = incremental_stream(data, data, ["x", "y"], scenario="domain", order=["c", "a", "b"])
    assert made.task_names == ["c", "a", "b"]
    assert made.num_seen == [2, 2, 2]
    assert made.task(0).train.rows.tolist() == [8, 9, 10, 11]


def test_blurry_rows_are_spread_and_none_is_lost():
    made = stream(classes=6, per_class=50, scenario="blurry", increment=2, blur=0.3)
    assert sorted(np.concatenate(made.train_rows).tolist()) == list(range(300))
    assert made.num_seen[0] == 6
    major = [np.bincount(made.task(t).train.labels, minlength=6) for t in range(3)]
    assert all(count.max() > 30 for count in major)
    again = stream(classes=6, per_class=50, scenario="blurry", increment=2, blur=0.3)
    assert again.fingerprint() == made.fingerprint()
    other = stream(classes=6, per_class=50, scenario="blurry", increment=2, blur=0.3, seed=1)
    assert other.fingerprint() != made.fingerprint()


def test_manifest_says_everything():
    said = stream(increment=4).manifest()
    assert said["class_order"] == [f"c{label}" for label in class_order(6, 1993)]
    assert said["classes_of_task"] == [[0, 1, 2, 3], [4, 5]]
    assert said["train_sizes"] == said["test_sizes"] == [16, 8]
    assert (said["order_seed"], said["increment"], said["tasks"]) == (1993, 4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set increment"),
        ({"increment": 7}, "increment must be"),
        ({"increment": 2, "order": ["c0"]}, "all 6 class names"),
        ({"increment": 2, "order": ["c0", "d1", "c2", "c3", "c4", "c5"]}, "'d1'"),
        ({"scenario": "domain"}, "domain of every row"),
        ({"scenario": "instruction"}, "no stream of the scenario"),
        ({"scenario": "blurry", "increment": 2, "blur": 1.5}, "blur is a share"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        stream(**options)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0, 1, 3], "test row 2 has the label 3"),
        ([0, 1, -1], [0, 1, 2], "training row 2 has the label -1"),
        ([0, 1, 1], [0, 1, 2], "1 of 3 classes have no training row"),
        ([0, 1, 2], [0, 1], "1 of 3 classes have no test row"),
        ([], [], "no training rows"),
    ],
)
def test_bad_labels(train, test, message):
    with pytest.raises(UserError, match=message):
        incremental_stream(labelled(train), labelled(test), ["a", "b", "c"], increment=1)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([[0, 1], []], [0, 0], "no training samples"),
        ([[0], [1]], [0, 0], "of an earlier task"),
        ([[0], [1]], [1, 0], "no training sample by task 0"),
        ([], [0], "at least one"),
    ],
)
def test_overlapping_or_empty_tasks(rows, labels, message):
    data = Vectors(torch.zeros(2, 1))
    arrays = [np.array(each, dtype=int) for each in rows]
    with pytest.raises(UserError, match=message):
        TaskStream("class", data, data, arrays, arrays or [], np.array(labels), np.array(labels))
