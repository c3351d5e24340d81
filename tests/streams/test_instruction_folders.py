"""Labelled texts and questions as instruction tasks."""

import json

import pytest

from moe_adapt.errors import UserError
from moe_adapt.streams.instruction_folders import folder_tasks
from moe_adapt.streams.instruction_stream import InstructionStream

TEXTS = [{"text": f"text {n} ", "label": label} for n, label in enumerate(["card_lost", "Top_up", "atm"] * 2)]
QUESTIONS = [{"question": "Is ice hot?", "choices": ["yes", "no"], "answer": 1, "response": "no"}]


def written(root, **sets):
    for name, rows in sets.items():
        (root / name).mkdir()
        for split in ("train", "test"):
            (root / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def test_texts_and_questions_become_tasks(tmp_path):
    written(tmp_path, intents=TEXTS, arc=QUESTIONS)
    arc, intents = folder_tasks(tmp_path)
    assert (arc.name, intents.name) == ("arc", "intents")
    assert arc.train[0].choices == ("yes", "no") and arc.train[0].answer == "no"
    assert intents.train[0].prompt == "Which label fits the text?\ntext 0"
    assert intents.train[0].answer == "card lost" and set(intents.train[0].choices) == {
        "card lost",
        "top up",
        "atm",
    }
    few = folder_tasks(tmp_path, ["intents"], most_labels=2)[0]
    assert {one.answer for one in few.train} == set(few.train[0].choices) == {"top up", "atm"}
    stream = InstructionStream("folders", str(tmp_path), ["intents", "arc"], most_labels=2)
    assert stream.task_names == ["intents", "arc"]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"text": "a"}], "line 1: expected 'text' and 'label'"),
        ([{"question": "q", "choices": ["a"], "answer": 3}], "number of the right one"),
        ([{"question": "q"}], "number of the right one"),
        ([[]], "expected an object"),
    ],
)
def test_other_rows_are_refused(tmp_path, rows, match):
    with pytest.raises(UserError, match=match):
        folder_tasks(written(tmp_path, broken=rows))


def test_missing_sets_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no data set"):
        folder_tasks(tmp_path)
    with pytest.raises(UserError, match="arc"):
        folder_tasks(written(tmp_path, arc=QUESTIONS), ["ark"])
