"""Tasks by list, by name and by file; classes in the order of their first rows."""

import json

import pytest

from moe_adapt.errors import UserError
from moe_adapt.streams import TextStream


def rows(*labels: str) -> list[dict]:
    return [{"text": f"{label} {i}", "label": label} for label in labels for i in range(4)]


def names(stream) -> list[list[str]]:
    return [[stream.class_names[c] for c in classes] for classes in stream.classes]


def test_tasks_by_list_and_by_name(tokenizer):
    train = rows("d", "a", "c", "b")
    listed = TextStream(tokenizer, train, tasks=[["c", "a"], ["b", "d"]], increment=2)
    assert [set(task) for task in names(listed)] == [{"a", "c"}, {"b", "d"}]
    assert listed.class_names == ["c", "a", "b", "d"]
    named = TextStream(tokenizer, train, tasks={"one": ["c"], "rest": ["a", "b", "d"]})
    assert named.task_names == ["one", "rest"] and len(named) == 2


def test_a_file_for_each_task(tokenizer, tmp_path):
    files = {}
    for name, labels in (("travel", ("z", "y")), ("billing", ("x", "a"))):
        files[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows(*labels)))
    stream = TextStream(tokenizer, tasks=files)
    assert stream.task_names == ["travel", "billing"]
    assert stream.class_names == ["z", "y", "x", "a"]
    assert [sorted(task) for task in names(stream)] == [["y", "z"], ["a", "x"]]
    with pytest.raises(UserError, match="not both"):
        TextStream(tokenizer, rows("a"), tasks=files)


def test_null_keeps_the_order_of_first_appearance(tokenizer):
    stream = TextStream(tokenizer, rows("d", "a", "c", "b"), increment=2, order_seed=None)
    assert stream.class_names == ["d", "a", "c", "b"]
    domains = TextStream(tokenizer, {"late": rows("b", "a"), "early": rows("a", "b")}, scenario="domain")
    assert domains.task_names == ["late", "early"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([["a"], ["a", "b"]], "in two tasks"),
        ([["a", "b"], []], "task 2 of 2 has none"),
        ([["a"], ["q"]], "class 'q', which does not exist"),
        ([["a"]], "order must name all"),
    ],
)
def test_what_makes_no_tasks_is_told(tokenizer, tasks, message):
    with pytest.raises(UserError, match=message):
        TextStream(tokenizer, rows("a", "b"), tasks=tasks)
