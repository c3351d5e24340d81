from functools import partial

import lightning as L
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.training.callbacks import LastCheckpoint
from moe_adapt.training.modules import CausalLM, ImageClassifier, SequenceClassifier
from tests.training.runs import NUM_CLASSES, loader, routed, text_batches, trainer


def classifier(bert: str, **options) -> SequenceClassifier:
    L.seed_everything(0, verbose=False)
    return SequenceClassifier(bert, NUM_CLASSES, **{"tuner": routed("dynmole"), "lr": 1e-2} | options)


def gradients(module: SequenceClassifier) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def randomize(module: SequenceClassifier) -> None:
    """Give every trainable tensor a value, so that every gradient is other than zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in sorted(module.named_parameters()):
            if p.requires_grad:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))


def step_loss(module: SequenceClassifier, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return module.task_loss(batch) + module.tuner.aux_loss()


def without_dropout(module: SequenceClassifier) -> SequenceClassifier:
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    randomize(module)
    return module.train()


def test_every_trainable_tensor_moves_within_three_steps_and_nothing_else(bert, tmp_path):
    module = classifier(bert)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer(tmp_path).fit(module, loader(text_batches(3)))
    for name, p in module.named_parameters():
        assert torch.equal(before[name], p) != p.requires_grad, name
    assert all(p.requires_grad for name, p in module.named_parameters() if "moe_adapt_" in name)


def test_logged_names(bert, tmp_path):
    runner = trainer(tmp_path)
    runner.fit(classifier(bert), loader(text_batches(2)), loader(text_batches(1)))
    names = set(runner.callback_metrics)
    aux = {"train/aux/entropy", "train/aux/load_balance"}
    assert names == {"train/loss", "train/task_loss", "val/loss", "val/acc"} | aux
    metrics = runner.callback_metrics
    assert metrics["train/loss"] == pytest.approx(
        float(metrics["train/task_loss"] + sum(metrics[name] for name in aux)), rel=1e-6
    )


def test_optimizer_groups_have_their_own_learning_rates_and_only_the_head_decays(bert, tmp_path):
    module = classifier(bert, router_lr=0.3, head_lr=0.5, weight_decay=0.1)
    runner = trainer(tmp_path)
    runner.fit(module, loader(text_batches(1)))
    groups = {group["name"]: group for group in runner.optimizers[0].param_groups}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "router": (0.3, 0.0),
        "experts": (1e-2, 0.0),
        "head": (0.5, 0.1),
    }
    router = {id(p) for name, p in module.named_parameters() if "moe_adapt_router__" in name}
    assert {id(p) for p in groups["router"]["params"]} == router


def test_an_optimizer_that_drops_parameters_is_refused(bert, tmp_path):
    module = classifier(bert, optimizer=lambda groups: torch.optim.SGD(groups[:1], lr=0.1))
    with pytest.raises(UserError, match="does not hold"):
        trainer(tmp_path).fit(module, loader(text_batches(1)))


def test_warmup_and_cosine_schedule(bert, tmp_path):
    module = classifier(bert, schedule="cosine", warmup=0.5, lr=1.0, optimizer=torch.optim.SGD)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(tmp_path, callbacks=[Watch()]).fit(module, loader(text_batches(4)))
    assert seen == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_a_scheduler_of_ones_own(bert, tmp_path):
    halve = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    module = classifier(bert, lr_scheduler=halve)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(module, loader(text_batches(1)))
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 4)
    with pytest.raises(UserError, match="one of them would be ignored"):
        classifier(bert, lr_scheduler=halve, schedule="cosine")


def test_a_non_finite_loss_stops_before_the_step_and_keeps_the_checkpoint(bert, tmp_path):
    module = classifier(bert)

    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                head = pl_module.model.base_model.model.classifier.modules_to_save["default"]
                head.bias.data.fill_(float("nan"))
                self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

    spoil = Spoil()
    runner = trainer(tmp_path, callbacks=[LastCheckpoint(every_n_train_steps=1), spoil])
    with pytest.raises(UserError, match=r"not finite at step 2 \(epoch 0, batch 2\)"):
        runner.fit(module, loader(text_batches(4)))
    assert runner.global_step == 2
    for name, p in module.named_parameters():
        assert torch.equal(p.nan_to_num(), spoil.before[name].nan_to_num()), name
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(t).all() for t in saved["state_dict"].values())


def test_a_bypassed_layer_is_named(bert, tmp_path):
    module = classifier(bert)
    layers = module.model.base_model.model.bert.encoder.layer
    layers[1].forward = lambda hidden, *args, **kwargs: hidden
    with pytest.raises(UserError, match=r"6 adapted layers were not reached .*bert\.encoder\.layer\.1\."):
        trainer(tmp_path).fit(module, loader(text_batches(2)))


def test_accumulating_two_halves_equals_one_batch(bert):
    """Both halves are the same rows, so that batch-wise losses agree with the whole."""
    half = text_batches(1)[0]
    whole = {name: torch.cat([value, value]) for name, value in half.items()}
    one = without_dropout(classifier(bert))
    step_loss(one, whole).backward()
    two = without_dropout(classifier(bert))
    for _ in range(2):
        (step_loss(two, half) / 2).backward()
    expected, found = gradients(one), gradients(two)
    assert all(torch.allclose(expected[n], found[n], rtol=1e-5, atol=1e-6) for n in expected)
    assert all(g.abs().max() > 0 for g in expected.values())


def test_gradient_checkpointing_gives_the_same_gradients(bert):
    batch = text_batches(1)[0]
    plain, recomputed = (
        without_dropout(classifier(bert, gradient_checkpointing=flag)) for flag in (False, True)
    )
    assert recomputed.model.base_model.model.is_gradient_checkpointing
    for module in (plain, recomputed):
        step_loss(module, batch).backward()
    expected, found = gradients(plain), gradients(recomputed)
    assert all(torch.allclose(expected[n], found[n], rtol=1e-5, atol=1e-7) for n in expected)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_runs_under(bert, tmp_path, options):
    module = classifier(bert)
    runner = trainer(tmp_path, **options)
    runner.fit(module, loader(text_batches(4)), loader(text_batches(1)))
    assert torch.isfinite(runner.callback_metrics["val/loss"])
    assert all(p.dtype == torch.float32 for p in module.parameters() if p.requires_grad)


def test_a_half_precision_base_trains_in_float32(bert, tmp_path):
    module = classifier(bert, dtype="bfloat16")
    trainer(tmp_path).fit(module, loader(text_batches(2)))
    assert all(p.dtype == torch.float32 for p in module.parameters() if p.requires_grad)
    assert module.model.base_model.model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16


def test_the_linear_probe_trains_the_head_over_a_base_in_evaluation_mode(bert, tmp_path):
    module = classifier(bert, tuner=None)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    assert names == ["model.classifier.weight", "model.classifier.bias"]
    trainer(tmp_path).fit(module, loader(text_batches(2)))
    module.train()
    assert not module.model.bert.training
    assert not module.model.bert.embeddings.dropout.training
    assert module.model.classifier.training


def test_fit_enters_training_mode(bert, tmp_path):
    module = classifier(bert)
    assert not module.model.base_model.model.bert.embeddings.dropout.training

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.mode = pl_module.model.base_model.model.bert.embeddings.dropout.training

    look = Look()
    trainer(tmp_path, callbacks=[look]).fit(module, loader(text_batches(1)))
    assert look.mode


def test_batch_norm_statistics_of_a_frozen_base_stay(tmp_path):
    module = ImageClassifier("test_resnet", 2, tuner=None, pretrained=False)
    before = {n: b.clone() for n, b in module.model.named_buffers() if "running" in n}
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.tensor([0, 1])}
    trainer(tmp_path).fit(module, loader([batch]))
    assert before
    assert all(torch.equal(b, before[n]) for n, b in module.model.named_buffers() if n in before)


def test_the_callers_configuration_is_not_changed(bert):
    config = routed()
    before = config.to_dict()
    classifier(bert, tuner=config)
    assert config.to_dict() == before


def test_a_language_model_without_tuner_cannot_be_trained(llama, tmp_path):
    batch = {"input_ids": torch.randint(6, 99, (2, 5)), "attention_mask": torch.ones(2, 5).long()}
    batch["labels"] = batch["input_ids"]
    module = CausalLM(llama)
    [metrics] = trainer(tmp_path).validate(module, loader([batch]), verbose=False)
    assert metrics["val/perplexity"] == pytest.approx(
        torch.tensor(metrics["val/loss"]).exp().item(), rel=1e-5
    )
    with pytest.raises(UserError, match="needs a tuner"):
        trainer(tmp_path).fit(module, loader([batch]))


def test_bad_settings_are_refused(bert, tmp_path):
    with pytest.raises(UserError, match="between 0 and 1"):
        classifier(bert, warmup=1.5)
    with pytest.raises(UserError, match="cannot load the backbone"):
        SequenceClassifier(str(tmp_path / "nowhere"), 2)
    with pytest.raises(UserError, match="max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(classifier(bert, schedule="linear"), loader(text_batches(1)))
