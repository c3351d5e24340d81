"""The head starts as the linear probe, and the best checkpoint is never below it."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from moe_adapt.training.callbacks import BestCheckpoint, HeadStart
from moe_adapt.training.checkpoint import read_checkpoint
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.probe import (
    Features,
    LinearRule,
    choose_decay,
    class_means,
    collect_features,
    fit_probe,
    largest_class,
    last_linear,
)
from tests.training.runs import routed, trainer
from tests.training.tiny import tiny_bert

WORDS = {"warm": "red orange yellow amber", "cold": "blue violet green teal", "grey": "ash stone slate fog"}


@pytest.fixture
def data(tokenizer) -> TextClassificationData:
    rows = [
        {"text": f"{word} {number % 5}", "label": label}
        for label, words in WORDS.items()
        for word in words.split()
        for number in range(6)
    ]
    return TextClassificationData(tokenizer, train=rows, validation_fraction=0.25, batch_size=8)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return str(tiny_bert(tmp_path_factory.mktemp("bert")))


def gaussians(seed: int, rows: int = 200) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 4
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(9)) * 3 + 20
    return Features(centres[labels] + torch.randn(rows, 6, generator=generator) * 2, labels)


def test_the_probe_is_the_logistic_regression_of_scikit_learn():
    rows, decay = gaussians(0), 0.03
    ours = fit_probe(rows, 4, bias=True, decay=decay)
    x = rows.vectors.double().numpy()
    scale = np.sqrt(((x - x.mean(0)) ** 2).mean())
    theirs = LogisticRegression(C=1 / (decay * len(x)), tol=1e-8, max_iter=2000)
    theirs.fit((x - x.mean(0)) / scale, rows.labels.numpy())
    scores = torch.softmax(rows.vectors @ ours.weight.T + ours.bias, dim=1)
    expected = theirs.predict_proba((x - x.mean(0)) / scale)
    assert np.abs(scores.numpy() - expected).max() < 5e-3


def test_probe_and_means_classify_new_rows():
    training, testing = gaussians(0), gaussians(1)
    decay = choose_decay(training, 4, bias=True, seed=0)
    assert fit_probe(training, 4, True, decay).accuracy(testing) > 0.8
    assert class_means(training, 4).accuracy(testing) > 0.8
    nearest = torch.cdist(
        testing.vectors, torch.stack([training.vectors[training.labels == c].mean(0) for c in range(4)])
    ).argmin(dim=1)
    rule = class_means(training, 4)
    assert torch.equal((testing.vectors @ rule.weight.T + rule.bias).argmax(dim=1), nearest)


def test_the_largest_class_is_said_of_every_row():
    rows = Features(torch.randn(5, 2), torch.tensor([0, 2, 2, 1, 2]))
    assert largest_class(rows, 4).accuracy(rows) == pytest.approx(0.6)


def test_a_class_without_rows_is_never_the_nearest():
    rule = class_means(gaussians(0), 6)
    assert rule.bias[4:].eq(float("-inf")).all()


@pytest.mark.parametrize("tuner", [None, "top_k"], ids=["head", "adapter"])
def test_the_head_is_the_probe_before_the_first_step(tuner, bert, data, tmp_path):
    torch.manual_seed(0)
    data.setup("fit")
    module = SequenceClassifier(bert, data.num_classes, None if tuner is None else routed(tuner))
    start, best = HeadStart(), BestCheckpoint()
    seen = {}

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            layer = pl_module.get_submodule(last_linear(pl_module, 3))
            seen.setdefault("head", LinearRule(layer.weight.detach().clone(), layer.bias.detach().clone()))

    trainer(tmp_path, callbacks=[start, Look(), best], max_epochs=2).fit(module, datamodule=data)
    assert torch.equal(seen["head"].weight, start.rules["linear_probe"].weight)
    assert start.found["val/acc"].keys() == {"largest_class", "nearest_mean", "linear_probe"}
    assert best.best_model_score >= start.found["val/acc"]["linear_probe"] - 1e-6
    assert read_checkpoint(tmp_path / "checkpoints/best.ckpt")["moe_adapt"]["answering"]["class_names"]
    json.dumps(start.facts())


def test_a_soft_start_keeps_the_probe_as_first_candidate(bert, data, tmp_path):
    data.setup("fit")
    module = SequenceClassifier(bert, data.num_classes, routed(), lr=0.0, head_lr=0.0)
    start = HeadStart(weight_decay=1.0)
    callbacks = [start, BestCheckpoint()]
    trainer(tmp_path, callbacks=callbacks, max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    kept = read_checkpoint(tmp_path / "checkpoints/best.ckpt")["state_dict"]
    path = last_linear(module, 3)
    assert torch.equal(kept[f"{path}.weight"], start.rules["linear_probe"].weight)
    now = module.get_submodule(path).weight
    assert now.norm() < start.rules["linear_probe"].weight.norm()


def test_features_are_what_the_head_reads(bert, data):
    data.setup("fit")
    module = SequenceClassifier(bert, data.num_classes, routed())
    path = last_linear(module, 3)
    loader = data.val_dataloader()
    rows = collect_features(module, loader, path, 100)
    layer = module.get_submodule(path)
    module.eval()
    with torch.no_grad():
        expected = torch.cat([module.logits(batch) for batch in loader])
        assert torch.allclose(layer(rows.vectors), expected, atol=1e-6)
    assert len(collect_features(module, loader, path, 5).labels) == 5


def test_a_random_start_changes_nothing(bert, data, tmp_path):
    data.setup("fit")
    states = []
    for callbacks in ([], [HeadStart(kind="random", measure=False)]):
        L.seed_everything(3, verbose=False)
        module = SequenceClassifier(bert, data.num_classes, routed())
        trainer(tmp_path, callbacks=callbacks, enable_checkpointing=False).fit(module, datamodule=data)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
