"""Three verdicts on what a language model writes; the artefact of format is what likelihood does not see."""

import json

import numpy as np
import pytest

from moe_adapt.errors import UserError
from moe_adapt.evaluation.answers import VERDICTS
from moe_adapt.training.stream import StreamRunner
from moe_adapt.training.stream.report import write_report
from moe_adapt.training.stream.verdicts import artefacts
from tests.learners.instructions.toys import learner, stream, writer


def writing(name="sequential_instructions"):
    """A learner whose model answers right, in lower case at first and in capitals from the second task on."""
    built = learner(name, writer())
    end = built.end_task

    def after(task, run):
        end(task, run)
        built.shout = task.index > 0

    def generate(batch):
        return [f" {a.upper() if built.shout else a}" for a in batch["answer"]]

    built.end_task, built.answerer.generate = after, generate
    return built


def test_a_lost_format_is_no_lost_task(tmp_path):
    result = StreamRunner(tmp_path, verdicts=True, attribution=False).run(
        writing(), stream(2, train=4, test=3)
    )
    assert set(result.verdicts) == set(VERDICTS)
    assert result.verdicts["exact"] == [[3, -1], [0, 0]]
    assert result.verdicts["normalised"] == [[3, -1], [3, 3]]
    assert result.verdicts["likelihood"] == result.matrix.correct.tolist()
    (row,) = result.format_artefacts()
    lost = row["likelihood_then"] - row["likelihood_now"]
    assert row["artefact_exact"] == pytest.approx(1 - lost)
    assert row["artefact_normalised"] == pytest.approx(-lost)
    assert result.metrics()["exact_backward_transfer"] == -1
    assert json.loads((tmp_path / "result.json").read_text())["format_artefacts"] == [row]
    write_report(tmp_path, result, [])
    assert "Form of answers" in (tmp_path / "report.html").read_text()


def test_a_resumed_run_has_the_verdicts(tmp_path):
    expected = StreamRunner(verdicts=True, attribution=False).run(writing(), stream(2, train=4, test=3))
    first = writing()
    end = first.end_task

    def stops(task, run):
        if task.index == 1:
            raise RuntimeError("power cut")
        end(task, run)

    first.end_task = stops
    runner = StreamRunner(tmp_path, verdicts=True, attribution=False)
    with pytest.raises(RuntimeError, match="power cut"):
        runner.run(first, stream(2, train=4, test=3))
    resumed = runner.run(writing(), stream(2, train=4, test=3), resume=True)
    assert resumed.verdicts == expected.verdicts


def test_artefacts_by_hand():
    rows = artefacts(
        {"exact": [[9, -1], [2, 5]], "normalised": [[9, -1], [7, 5]], "likelihood": [[9, -1], [8, 5]]},
        np.array([10, 10]),
    )
    assert len(rows) == 1
    assert rows[0]["artefact_exact"] == pytest.approx(0.6)
    assert rows[0]["artefact_normalised"] == pytest.approx(0.1)


def test_a_model_that_only_chooses_has_no_format():
    with pytest.raises(UserError, match="does not write"):
        StreamRunner(verdicts=True).run(learner("sequential_instructions"), stream(2))
