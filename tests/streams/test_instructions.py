"""Instruction streams: what they refuse, sources, variants; verdicts on answers."""

import gzip
import json

import pytest

from moe_adapt.errors import UserError
from moe_adapt.evaluation.answers import exact_match, format_artefact, normalise, normalised_match
from moe_adapt.streams import (
    Instruction,
    InstructionTask,
    conflicting_tasks,
    hold_out,
    instruction_stream,
    jsonl_tasks,
    letter_answers,
    olora_order,
    olora_task,
    overlap_tasks,
    repeat_tasks,
)
from moe_adapt.streams.instruction_sources import OLORA_ORDERS


def task(name="t", train=6, test=4, choices=("yes", "no")):
    def some(count):
        return [Instruction(f"{name} {i}?", choices[i % len(choices)], choices) for i in range(count)]

    return InstructionTask(name, some(train), some(test))


def test_samples_keep_their_task_and_order():
    stream = instruction_stream([task("a"), task("b", train=3)], max_train=5)
    assert [len(rows) for rows in stream.train_rows] == [5, 3]
    samples, tasks = stream.test_until(1)
    assert tasks.tolist() == [0] * 4 + [1] * 4
    assert samples[5] == {"prompt": "b 1?", "answer": "no", "choices": ["yes", "no"], "row": 5}
    batch = stream.collate([samples[0], samples[5]])
    assert batch["choices"] == [["yes", "no"], ["yes", "no"]] and batch["row"].tolist() == [0, 5]
    assert stream.num_seen == [0, 0] and stream.task(1).classes == ()
    again = instruction_stream([task("a"), task("b", train=3)], max_train=5)
    assert stream.fingerprint() == again.fingerprint()
    assert stream.fingerprint() != instruction_stream([task("a"), task("b", train=3)], seed=1).fingerprint()


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([], "no task"),
        ([task("a"), task("a")], "'a' twice"),
        ([task(train=0)], "empty"),
        ([InstructionTask("t", [Instruction("p", " ")], [Instruction("p", "x")])], "empty answer"),
        ([InstructionTask("t", [Instruction("", "x")], [Instruction("p", "x")])], "empty prompt"),
        ([InstructionTask("t", [Instruction("p", "x", ("y", "z"))], [Instruction("p", "x")])], "none of its"),
        ([InstructionTask("t", [Instruction("p", "y", ("y", "y"))], [Instruction("p", "x")])], "twice"),
    ],
)
def test_bad_tasks(tasks, match):
    with pytest.raises(UserError, match=match):
        instruction_stream(tasks)


def test_holding_out():
    train, test = hold_out(task(train=10).train, 0.2, seed=0, name="t")
    assert len(train) == 8 and len(test) == 2 and not set(train) & set(test)
    assert hold_out(task(train=10).train, 0.2, seed=0, name="t") == (train, test)
    assert [len(part) for part in hold_out(task(train=2).train, 0.9, seed=0, name="t")] == [1, 1]
    with pytest.raises(UserError, match="nothing can be held out"):
        hold_out(task(train=1).train, 0.2, seed=0, name="t")


def test_json_lines(tmp_path):
    rows = [{"prompt": "p", "answer": "a", "choices": ["a", "b"]}, {"prompt": "q", "answer": "free"}]
    (tmp_path / "one_train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "one_test.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
    (tmp_path / "two_train.jsonl").write_text("\n".join(map(json.dumps, rows * 5)))
    one, two = jsonl_tasks(tmp_path)
    assert one.train == [Instruction("p", "a", ("a", "b")), Instruction("q", "free")] and len(one.test) == 1
    assert len(two.train) == 8 and two.origin["test"] == "held out"
    assert [t.name for t in jsonl_tasks(tmp_path, ["two"])] == ["two"]
    with pytest.raises(UserError, match="Did you mean 'two'"):
        jsonl_tasks(tmp_path, ["tow"])
    (tmp_path / "two_train.jsonl").write_text('{"prompt": "p"}')
    with pytest.raises(UserError, match="line 1: expected an object"):
        jsonl_tasks(tmp_path)
    (tmp_path / "two_train.jsonl").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        jsonl_tasks(tmp_path)
    with pytest.raises(UserError, match="holds no task"):
        jsonl_tasks(tmp_path / "nowhere")


def olora_folder(root):
    def write(name, split, rows):
        (root / f"{name}_{split}.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))

    for name, splits in {"agnews": ("train", "test"), "dbpedia": ("test",), "MNLI": ("train",)}.items():
        (root / f"{name}_labels.json").write_text('["x", "y"]')
        for split in splits:
            rows = [{"sentence": f"{split} {i}", "label": "xy"[i % 2]} for i in range(10)]
            write(name, split, [*rows, {"sentence": "no answer", "label": "-"}])
    return root


def test_olora_benchmark_says_what_it_lacks(tmp_path):
    root = olora_folder(tmp_path)
    full, only_test = olora_task(root, "agnews"), olora_task(root, "dbpedia")
    assert len(full.train) == len(full.test) == 10, "a row without a label of the task is left out"
    assert full.train[0].prompt == "What is the topic of the text?\ntrain 0"
    assert (len(only_test.train), len(only_test.test)) == (8, 2)
    assert only_test.origin == {
        "benchmark": "O-LoRA",
        "task": "dbpedia",
        "splits": ["test"],
        "held_out": 0.2,
    }
    assert [t.name for t in olora_order(root, 1)] == ["dbpedia", "agnews"]
    assert [t.name for t in olora_order(root, 4)] == ["MNLI", "dbpedia", "agnews"]
    with pytest.raises(UserError, match="orders 1 to 6"):
        olora_order(root, 7)
    with pytest.raises(UserError, match="no task 'yelp'"):
        olora_task(root, "yelp")


def test_published_orders():
    assert [len(OLORA_ORDERS[number]) for number in range(1, 7)] == [4] * 3 + [15] * 3
    assert all(len(set(order)) == len(order) for order in OLORA_ORDERS.values())
    assert len({frozenset(OLORA_ORDERS[number]) for number in (4, 5, 6)}) == 1


def test_overlap_is_a_dial():
    tasks = [task("a", train=10), task("b", train=10)]
    for share, borrowed in ((0.0, 0), (0.5, 5), (1.0, 10)):
        first, second = overlap_tasks(tasks, share)
        assert first is tasks[0] and len(second.train) == 10
        assert sum(one.prompt.startswith("a ") for one in second.train) == borrowed
        assert list(second.test) == list(tasks[1].test)
    with pytest.raises(UserError, match="between 0 and 1"):
        overlap_tasks(tasks, 1.5)


def test_conflicts_and_repetitions_and_letters():
    first, second = conflicting_tasks(task("a"))
    assert [one.prompt for one in first.train] == [one.prompt for one in second.train]
    assert all(a.answer != b.answer for a, b in zip(first.train, second.train, strict=True))
    names = [t.name for t in repeat_tasks([task("a"), task("b")], [0, 1, 0])]
    assert names == ["a", "b", "a, time 2"]
    with pytest.raises(UserError, match="tasks 0 to 0"):
        repeat_tasks([task("a")], [1])
    lettered = letter_answers(task("a")).train[1]
    assert (
        lettered.prompt == "a 1?\nA: yes\nB: no" and lettered.answer == "B" and lettered.choices == ("A", "B")
    )
    with pytest.raises(UserError, match="at least two choices"):
        conflicting_tasks(InstructionTask("t", [Instruction("p", "x")], [Instruction("p", "x")]))
    with pytest.raises(UserError, match="2 to 26"):
        letter_answers(InstructionTask("t", [Instruction("p", "x")], [Instruction("p", "x")]))


def test_verdicts():
    assert exact_match(" Yes ", "Yes") and not exact_match("yes", "Yes")
    assert (
        normalised_match("The cat!", "cat") and normalised_match("a.", "A") and not normalised_match("b", "a")
    )
    assert normalise("the") == "the"
    assert format_artefact((0.9, 0.1), (0.9, 0.9)) == pytest.approx(0.8)
    assert format_artefact((0.9, 0.5), (0.9, 0.5)) == 0
