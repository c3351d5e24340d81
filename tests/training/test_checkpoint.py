import copy
from pathlib import Path

import lightning as L
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.hub.fingerprint import adapter_state, fingerprint
from moe_adapt.training.checkpoint import (
    AtomicCheckpointIO,
    checkpoint_path,
    load_checkpoint,
    read_checkpoint,
)
from moe_adapt.training.modules import SequenceClassifier
from tests.training.runs import NUM_CLASSES, loader, routed, text_batches, trainer
from tests.training.tiny import tiny_bert


@pytest.fixture(scope="module")
def trained(bert, tmp_path_factory) -> tuple[SequenceClassifier, Path]:
    L.seed_everything(0, verbose=False)
    module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed(), lr=1e-2)
    folder = tmp_path_factory.mktemp("run")
    runner = trainer(folder)
    runner.fit(module, loader(text_batches(3)))
    runner.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return module, folder / "checkpoints" / "last.ckpt"


def test_holds_the_adapter_and_the_head_only(trained):
    module, path = trained
    state = read_checkpoint(path)["state_dict"]
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(state) == trainable
    assert any("classifier" in name for name in state)
    assert not any(
        "base_layer" in name or "original_module" in name or "embeddings" in name for name in state
    )
    assert sum(t.numel() for t in state.values()) < 0.25 * sum(p.numel() for p in module.parameters())


def test_loads_into_a_fresh_module_with_equal_logits(bert, trained):
    module, path = trained
    fresh = SequenceClassifier(bert, NUM_CLASSES, tuner=routed())
    batch = text_batches(1, seed=5)[0]
    module.eval(), fresh.eval()
    with torch.no_grad():
        assert not torch.equal(module(batch), fresh(batch))
        load_checkpoint(fresh, path)
        assert torch.equal(module(batch), fresh(batch))


def test_frozen_experts_are_in_the_checkpoint(bert, tmp_path):
    module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed())
    module.tuner.freeze_experts([0])
    names = adapter_state(module)
    assert any("moe_adapt_A_frozen" in name for name in names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tuner": routed(num_experts=4)}, "tuner.num_experts was 3, is 4"),
        ({"tuner": routed("dynmole")}, "tuner.method was 'top_k', is 'dynmole'"),
        ({"tuner": None}, "another configuration"),
        ({"pooling": "mean"}, "pooling was 'model', is 'mean'"),
        ({"num_classes": 5}, "num_classes was 4, is 5"),
    ],
)
def test_another_configuration_is_refused(bert, trained, options, words):
    _, path = trained
    settings = {"num_classes": NUM_CLASSES, "tuner": routed()} | options
    with pytest.raises(UserError, match=words):
        load_checkpoint(SequenceClassifier(bert, **settings), path)


def test_another_base_is_refused(trained, tmp_path):
    _, path = trained
    other = SequenceClassifier(str(tiny_bert(tmp_path, seed=1)), NUM_CLASSES, tuner=routed())
    with pytest.raises(UserError, match="use the same base model"):
        load_checkpoint(other, path)


def test_another_learning_rate_is_refused_only_for_training(bert, trained, tmp_path):
    _, path = trained
    module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed(), lr=1e-3)
    load_checkpoint(module, path)
    trainer(tmp_path).validate(module, loader(text_batches(1)), ckpt_path=str(path), verbose=False)
    with pytest.raises(UserError, match=r"lr\.experts was 0\.01, is 0\.001"):
        trainer(tmp_path).fit(module, loader(text_batches(3)), ckpt_path=str(path))


def test_missing_unexpected_and_misshapen_tensors_are_named(bert, trained):
    module, path = trained
    good = read_checkpoint(path)
    name, *_ = good["state_dict"]
    for change, words in (
        (lambda state: state.pop(name), "missing 1"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected 1 .extra."),
        (lambda state: state.update({name: torch.zeros(1)}), "of another shape 1"),
    ):
        bad = copy.deepcopy(good)
        change(bad["state_dict"])
        with pytest.raises(UserError, match=words):
            module.on_load_checkpoint(bad)


def test_foreign_newer_damaged_and_absent_files_are_refused(trained, tmp_path):
    module, path = trained
    with pytest.raises(UserError, match="not written by moe_adapt"):
        module.on_load_checkpoint({"state_dict": {}})
    newer = read_checkpoint(path)
    newer["moe_adapt"]["format_version"] = 99
    with pytest.raises(UserError, match="upgrade moe_adapt"):
        module.on_load_checkpoint(newer)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        read_checkpoint(damaged)
    damaged.write_text("not a checkpoint")
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        read_checkpoint(damaged)
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")


def test_fingerprint_sees_one_changed_base_weight_and_no_training(bert, trained):
    module, _ = trained
    fresh = SequenceClassifier(bert, NUM_CLASSES, tuner=routed())
    assert fingerprint(fresh) == fingerprint(module)
    with torch.no_grad():
        next(p for name, p in fresh.named_parameters() if "LayerNorm.weight" in name)[0] += 1e-3
    assert fingerprint(fresh) != fingerprint(module)


def test_best_is_the_last_of_a_run_without_validation(tmp_path):
    folder = tmp_path / "checkpoints"
    with pytest.raises(UserError, match="no checkpoint 'best'"):
        checkpoint_path(tmp_path)
    folder.mkdir()
    (folder / "last.ckpt").touch()
    assert checkpoint_path(tmp_path).name == "last.ckpt"
    (folder / "best.ckpt").touch()
    assert checkpoint_path(tmp_path).name == "best.ckpt"
    assert checkpoint_path(tmp_path, "last").name == "last.ckpt"
    assert checkpoint_path(tmp_path, str(folder / "best.ckpt")).name == "best.ckpt"


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": lambda: None}}, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
