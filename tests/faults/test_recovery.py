"""Runs that were copied, deleted, finished or damaged; learners that are given other tensors."""

import json
import shutil

import numpy as np
import pytest
import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.learners import FeCam, FineTuning, NearestMean, Ridge, Slda, WhitenedMean
from moe_adapt.training.loggers import RunCSVLogger
from moe_adapt.training.stream import StreamRunner
from moe_adapt.training.stream.features import cached_stream
from tests.faults.scenarios import fit_words, prepare_fit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run in ``run[1]``, whose neighbour ``run1`` a pattern would take."""
    root = tmp_path_factory.mktemp("recovery")
    prepare_fit(root)
    (root / "run1").mkdir()
    assert main([*fit_words(root, root / "run[1]"), "--trainer.max_epochs", "1"]) == 0
    return root


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(root, capsys):
    before = contents(root / "run[1]")
    assert json.loads(before["manifest.json"])["metrics"]
    assert main(["fit", "--config", str(root / "run[1]" / "moe_adapt_config.yaml"), "--resume"]) == 2
    assert "has finished: nothing is left to train" in capsys.readouterr().err
    assert contents(root / "run[1]") == before


def test_a_copied_run_goes_on_in_its_own_folder(root, capsys):
    before = contents(root / "run[1]")
    shutil.copytree(root / "run[1]", root / "copy")
    config = str(root / "copy" / "moe_adapt_config.yaml")
    assert main(["fit", "--config", config, "--resume", "--trainer.max_epochs", "2"]) == 0
    assert contents(root / "run[1]") == before and contents(root / "copy") != before
    assert json.loads((root / "copy" / "manifest.json").read_text())["status"] == "finished"


def test_a_learner_refuses_tensors_of_another_shape():
    learner = FineTuning(ToyEncoder())
    StreamRunner().run(learner, gaussian_stream(tasks=2, train=6, test=4))
    history, state = list(learner.history), dict(learner.learner_state())
    for name, tensor in state.items():
        for other in (torch.zeros(3, 5, 7), tensor[..., None], tensor.reshape(-1)[:-1]):
            with pytest.raises(UserError, match=f"{name} has the shape") as told:
                FineTuning(ToyEncoder()).restore(history, {**state, name: other})
            assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="only on one side"):
        FineTuning(ToyEncoder()).restore(history, {**state, "more": torch.zeros(1)})


@pytest.mark.parametrize("kind", [NearestMean, Slda, Ridge, FeCam, WhitenedMean])
def test_a_head_refuses_statistics_of_another_shape(kind):
    learner = kind(ToyEncoder())
    StreamRunner().run(learner, gaussian_stream(tasks=2, train=6, test=4))
    history, state = list(learner.history), dict(learner.learner_state())
    for name, tensor in state.items():
        wrong = torch.zeros(*tensor.shape, 2)
        with pytest.raises(UserError, match=r"has the shape|does not fit"):
            kind(ToyEncoder()).restore(history, {**state, name: wrong})


def changed(stream, split, row):
    data = getattr(stream, split)
    data.x = data.x.clone()
    data.x[row] += 1
    return stream


@pytest.mark.parametrize("split", ["train", "test"])
def test_kept_features_are_those_of_the_content(tmp_path, split):
    """Every row counts, whichever was changed; the time of a file does not."""
    learner = FineTuning(ToyEncoder())
    learner.backbone.requires_grad_(False)

    def encoded(stream):
        found, cost = cached_stream(learner, stream, tmp_path, 16)
        return getattr(found, split).features, cost["forwards"]

    first, forwards = encoded(gaussian_stream())
    assert forwards and encoded(gaussian_stream())[1] == 0
    for row in (0, 1, 2, 37):
        again, forwards = encoded(changed(gaussian_stream(), split, row))
        assert forwards and not torch.equal(again[row], first[row])


def test_kept_features_that_are_damaged(tmp_path):
    learner = FineTuning(ToyEncoder())
    learner.backbone.requires_grad_(False)
    cached_stream(learner, gaussian_stream(), tmp_path, 16)
    (path,) = tmp_path.glob("features-*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    for wrong in ({"train": arrays["train"][:, 0]}, {"test": arrays["test"] * np.nan}):
        np.savez(path, **{**arrays, **wrong})
        with pytest.raises(UserError, match="delete it, and it is made again"):
            cached_stream(learner, gaussian_stream(), tmp_path, 16)


def test_metrics_keep_every_row(tmp_path):
    """Columns that come later, a resume, a half line: all whole rows before the checkpoint stay."""
    for start in (0, 3):
        logger = RunCSVLogger(tmp_path, flush_every=2)
        for step in range(start, start + 4):
            logger.log_metrics({"a": step} | ({"b": step} if step % 2 else {}), step)
        logger.save()
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("9,")
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"a": 7, "c": 1}, 7)
    logger.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert sorted(lines[0].split(",")) == ["a", "b", "c", "step"] and len(lines) == 9
