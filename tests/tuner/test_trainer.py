"""`transformers.Trainer` trains a routed model as it is, and resumes it."""

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutingCallback
from tests.tuner.clients import (
    ARGUMENTS,
    RATE,
    SPARE_WARNING,
    base,
    check_step,
    config,
    routers,
    with_spare,
)
from tests.tuner.tiny import adapted, batch


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = batch(rows=4)
        return {key: value[index] for key, value in rows.items()}


def trainer(folder, steps):
    model = adapted("dynmole", dropout=0.0)
    model.base_model.add_aux_to_loss = True
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows())


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_trains_and_resumes(tmp_path):
    whole = trainer(tmp_path / "whole", steps=4)
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    first = trainer(tmp_path / "parts", steps=2)
    first.train()
    second = trainer(tmp_path / "parts", steps=4)
    second.train(resume_from_checkpoint=True)
    assert losses(second)[2:] == losses(whole)[2:]


class Whole(Rows):
    """Rows without padding: each batch of a step has the same part of its tokens."""

    def __getitem__(self, index):
        return {key: value[index] for key, value in batch(rows=4, left_padding=0).items()}


def stepper(folder, callbacks=True, base_model=None, rows=None, options=None, **arguments):
    model = peft.get_peft_model(base_model or base(), config(**(options or {})))
    settings = {**ARGUMENTS, "per_device_train_batch_size": 2, **arguments}
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=rows or Whole(),
        callbacks=[RoutingCallback()] if callbacks else None,
    )


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_auxiliary_losses_are_a_mean_over_the_micro_batches(tmp_path, steps, smoothing):
    trainer = stepper(tmp_path, gradient_accumulation_steps=steps, label_smoothing_factor=smoothing)
    assert len(check_step(trainer)) == steps


def test_a_loss_function_of_the_users_own_trains_routers_too(tmp_path):
    trainer = stepper(tmp_path, gradient_accumulation_steps=2)
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: (
        outputs.logits.square().mean()
    )
    check_step(trainer)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_logged_loss_holds_the_auxiliary_loss_once(tmp_path, steps):
    class Same(Rows):
        def __getitem__(self, index):
            return super().__getitem__(1)

    trainer = stepper(
        tmp_path,
        callbacks=False,
        rows=Same(),
        learning_rate=0.0,
        gradient_accumulation_steps=steps,
        per_device_train_batch_size=4 // steps,
    )
    trainer.model.base_model.add_aux_to_loss = True
    trainer.train()
    trainer.model.base_model.add_aux_to_loss = False
    one = {key: value[None] for key, value in Same()[0].items()}
    expected = trainer.model.train()(**one).loss + trainer.model.base_model.aux_loss()
    assert losses(trainer)[0] == pytest.approx(expected.item(), abs=1e-3)


def test_losses_on_parameters_are_delivered(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda tensor: torch.full_like(tensor, 0.75))
    moves = []
    for weight in (0.0, 0.7):
        options = {"aux_losses": [{"name": "router_coupling", "weight": weight}]}
        trainer = stepper(
            tmp_path, options=options, label_smoothing_factor=0.1, gradient_accumulation_steps=2
        )
        model = trainer.model
        before, start = routers(model), {key: value.clone() for key, value in model.state_dict().items()}
        trainer.train()
        moves.append({name: before[name] - value for name, value in routers(model).items()})
        model.load_state_dict(start)
    model.zero_grad()
    model.train()(**{key: value[None] for key, value in Rows()[1].items()})
    expected = torch.autograd.grad(
        model.base_model.aux_loss(), [p for n, p in model.named_parameters() if n in before]
    )
    for name, gradient in zip(before, expected, strict=True):
        assert gradient.any()
        torch.testing.assert_close(moves[1][name] - moves[0][name], gradient * RATE, rtol=1e-2, atol=1e-6)


def test_state_and_schedules_of_routers_move(tmp_path):
    options = {"method": "condenser", "aux_losses": [], "num_experts": 6}
    trainer = stepper(tmp_path, options=options, max_steps=4)
    trainer.train()
    state = trainer.model.state_dict()
    biases = [value for name, value in state.items() if "bias" in name and "moe_adapt_router" in name]
    chosen = [value for name, value in state.items() if name.endswith("chosen.default")]
    assert biases and all(value.any() for value in biases)
    assert chosen and all(value.sum() == 2 for value in chosen)
    plain = stepper(tmp_path, callbacks=False, options=options, max_steps=12)
    with pytest.warns(UserWarning, match="stands at its end"):
        plain.train()


def test_a_forward_without_gradients_or_adapter_adds_nothing():
    model = peft.get_peft_model(base(), config()).train()
    rows = batch()
    task = model(**rows).loss
    model.base_model.add_aux_to_loss = True
    with torch.no_grad():
        assert torch.equal(model(**rows).loss, task)
    with model.disable_adapter():
        model(**rows)
    model.eval()
    assert torch.equal(model(**rows).loss, task)
    model.train()
    assert model(**rows).loss > task
    with torch.no_grad(), model.disable_adapter():
        model(**rows)  # a reference after the policy takes nothing away
    out = model(**rows)
    with torch.no_grad(), model.disable_adapter():
        model(**rows)
    out.logits.sum().backward()
    assert all(p.grad.any() for _, p in model.base_model.parameter_groups()["router"])


def test_two_sides_of_a_pair_count_with_their_mean():
    gradients = []
    for forwards in (1, 2):
        model = peft.get_peft_model(base(), config()).train()
        model.base_model.add_aux_to_loss = True
        sum(model(**batch()).logits.sum() for _ in range(forwards)).backward()
        gradients.append([p.grad for _, p in model.base_model.parameter_groups()["router"]])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_a_model_without_an_adapter_is_named(tmp_path):
    trainer = Trainer(
        model=base(),
        args=TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS),
        train_dataset=Rows(),
        callbacks=[RoutingCallback()],
    )
    with pytest.raises(UserError, match="has no routed adapter"):
        trainer.train()


def test_a_layer_that_nothing_calls_is_told(tmp_path):
    run = stepper(tmp_path, base_model=with_spare(), options={"target_modules": ["q_proj", "spare"]})
    with pytest.warns(UserWarning, match=SPARE_WARNING):
        run.train()
