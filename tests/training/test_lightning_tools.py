"""Lightning's own tools on our modules: finders, tuners, callbacks, loading from a checkpoint alone."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
)
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from moe_adapt.errors import UserError
from moe_adapt.training.modules import CausalLM, ImageClassifier, SequenceClassifier
from tests.training.runs import NUM_CLASSES, routed, text_batches, trainer


class Rows(L.LightningDataModule):
    """Rows of text, in batches of a size that a finder may change."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size
        whole = text_batches(16)
        self.rows = [{key: value[row] for key, value in batch.items()} for batch in whole for row in range(2)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[:4], batch_size=2)


def classifier(bert: str, **options) -> SequenceClassifier:
    return SequenceClassifier(bert, NUM_CLASSES, **{"tuner": routed("top_k"), "lr": 1e-2} | options)


def test_learning_rate_finder_keeps_the_ratio_of_the_roles(bert, tmp_path):
    module = classifier(bert, lr=1e-3, router_lr=5e-4, head_lr=2e-3)
    runner = trainer(tmp_path, max_steps=2)
    found = Tuner(runner).lr_find(module, datamodule=Rows(), num_training=20, min_lr=1e-5, max_lr=1e-1)
    rate = found.suggestion(skip_begin=2, skip_end=1)
    assert len(found.results["lr"]) >= 12
    module.lr = rate
    assert module.learning_rates == pytest.approx({"router": rate / 2, "experts": rate, "head": 2 * rate})
    runner.fit(module, datamodule=Rows())
    groups = {group["name"]: group["lr"] for group in runner.optimizers[0].param_groups if "name" in group}
    assert all(
        value == pytest.approx(module.learning_rates[name.split("/")[0]]) for name, value in groups.items()
    )


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_finders_as_callbacks_run_before_the_fit(kind, bert, llama, tmp_path):
    module = classifier(bert) if kind == "bert" else CausalLM(llama, tuner=routed("dynmole"))
    data = Rows()
    if kind == "llama":
        for row in data.rows:
            row["labels"] = row["input_ids"].clone()
    finders = [
        BatchSizeFinder(mode="power", steps_per_trial=1, init_val=1, max_trials=2),
        LearningRateFinder(num_training_steps=14, min_lr=1e-5, max_lr=1e-2, early_stop_threshold=None),
    ]
    before = module.lr
    runner = trainer(tmp_path, max_steps=2, callbacks=finders)
    runner.fit(module, datamodule=data)
    assert data.batch_size == 2
    assert module.lr != before and isinstance(module.learning_rates, dict)
    assert runner.global_step == 2
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_scale_batch_size(bert, tmp_path):
    data = Rows()
    Tuner(trainer(tmp_path)).scale_batch_size(
        classifier(bert), datamodule=data, mode="binsearch", init_val=1, max_trials=3, steps_per_trial=1
    )
    assert data.batch_size in (2, 3, 4)


def test_early_stopping(bert, tmp_path):
    stopping = EarlyStopping("val/loss", patience=0, min_delta=100.0)
    runner = trainer(tmp_path, max_epochs=5, callbacks=[stopping])
    runner.fit(classifier(bert), datamodule=Rows())
    assert runner.current_epoch < 5


def test_backbone_finetuning_is_refused_in_one_sentence(bert, tmp_path):
    runner = trainer(tmp_path, callbacks=[BackboneFinetuning()])
    with pytest.raises(UserError, match="BackboneFinetuning thaws the base model, which stays frozen"):
        runner.fit(classifier(bert), datamodule=Rows())


def built(kind: str, bert: str, llama: str):
    if kind == "text":
        return classifier(bert, router_lr=1e-3, schedule="cosine")
    if kind == "language":
        return CausalLM(llama, tuner=routed("dynmole"), max_new_tokens=4)
    if kind == "probe":
        return classifier(bert, tuner=None)
    torch.manual_seed(0)
    return ImageClassifier("test_vit", 3, tuner=routed("top_k", target_modules="ffn"), pretrained=False)


@pytest.mark.parametrize("kind", ["text", "language", "probe", "image"])
def test_a_checkpoint_opens_by_itself(kind, bert, llama, tmp_path):
    module = built(kind, bert, llama)
    runner = trainer(tmp_path)
    runner.strategy.connect(module)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.1)
    runner.save_checkpoint(tmp_path / "saved.ckpt")
    if kind == "image":
        torch.manual_seed(0)
        again = ImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt", pretrained=False)
    else:
        again = type(module).load_from_checkpoint(tmp_path / "saved.ckpt")
    assert again.learning_rates == module.learning_rates and again.schedule == module.schedule
    for (name, one), (_, other) in zip(module.named_parameters(), again.named_parameters(), strict=True):
        assert "original_module" in name or torch.equal(one, other), name
    if kind == "text":
        with pytest.raises(UserError, match="holds a SequenceClassifier, not a CausalLM"):
            CausalLM.load_from_checkpoint(tmp_path / "saved.ckpt")


def test_a_checkpoint_that_does_not_say_enough(bert, tmp_path):
    module = classifier(bert)
    module.settings = lambda: {}
    runner = trainer(tmp_path)
    runner.strategy.connect(module)
    runner.save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(UserError, match="give what is missing as keyword"):
        SequenceClassifier.load_from_checkpoint(tmp_path / "saved.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="was not written by moe_adapt"):
        partial(SequenceClassifier.load_from_checkpoint)(tmp_path / "other.ckpt")
