"""TRL's trainers train routers by their auxiliary losses, though they never differentiate `output.loss`."""

import warnings

import pytest
import torch
from datasets import Dataset

from moe_adapt.tuner import ModelHooks, RoutingCallback
from tests.tuner.clients import (
    ARGUMENTS,
    SPARE_WARNING,
    base,
    check_step,
    config,
    moved,
    tokenizer,
    with_spare,
)

trl = pytest.importorskip("trl", reason="needs the extra clients: pip install 'moe-adapt[clients]'")

PROMPTS = ["sky is", "grass is", "snow is", "coal is"]
ANSWERS = [" blue", " green", " white", " black"]
TEXTS = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
BOTH = {"prompt": PROMPTS, "completion": ANSWERS}


def sft(folder, rows=None, callbacks=True, smoothing=0.0, model=None, targets=None, **options):
    settings = ARGUMENTS | {"per_device_train_batch_size": 2, "max_length": 16} | options
    return trl.SFTTrainer(
        model=model or base(),
        args=trl.SFTConfig(output_dir=str(folder), label_smoothing_factor=smoothing, **settings),
        train_dataset=Dataset.from_dict(rows or {"text": TEXTS}),
        processing_class=tokenizer(),
        peft_config=config(**({"target_modules": targets} if targets else {})),
        callbacks=[RoutingCallback()] if callbacks else None,
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_supervised(tmp_path, steps):
    seen = check_step(sft(tmp_path, gradient_accumulation_steps=steps))
    assert len(seen) == steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"rows": BOTH},
        {"rows": BOTH, "completion_only_loss": False},
        {"packing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"smoothing": 0.1, "gradient_accumulation_steps": 2},
    ],
    ids=["completion", "prompt-too", "packing", "checkpointing", "reentrant", "smoothing"],
)
def test_supervised_variants(tmp_path, options):
    check_step(sft(tmp_path, **options))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_preferences(tmp_path, steps, checkpointing):
    settings = ARGUMENTS | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": steps}
    trainer = trl.DPOTrainer(
        model=base(),
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "chosen": ANSWERS, "rejected": ANSWERS[::-1]}),
        processing_class=tokenizer(),
        peft_config=config(),
        callbacks=[RoutingCallback()],
    )
    seen = check_step(trainer)
    assert len(seen) == steps  # the reference policy is no forward of the step


@pytest.mark.slow
def test_policy_gradient(tmp_path):
    settings = ARGUMENTS | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    trainer = trl.GRPOTrainer(
        model=base(),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), num_generations=2, max_completion_length=4, beta=0.1, **settings
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
        peft_config=config(),
        callbacks=[RoutingCallback()],
    )
    check_step(trainer)


def test_one_warning_if_nobody_collects(tmp_path):
    trainer = sft(tmp_path, callbacks=False, max_steps=12)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    ours = [str(w.message) for w in caught if "nobody took the auxiliary losses" in str(w.message)]
    assert len(ours) == 1
    assert "RoutingCallback" in ours[0] and "load_balance, z_loss" in ours[0]


@pytest.mark.slow
def test_a_layer_that_nothing_calls_is_told(tmp_path):
    trainer = sft(tmp_path, model=with_spare(), targets=["q_proj", "spare"])
    with pytest.warns(UserWarning, match=SPARE_WARNING):
        trainer.train()


@pytest.mark.slow
def test_without_the_callback_nothing_is_added(tmp_path):
    found, _, _ = moved(sft(tmp_path, callbacks=False))
    assert all(not value.any() for value in found.values())


@pytest.mark.slow
def test_state_and_schedule_move_and_are_logged(tmp_path):
    trainer = sft(tmp_path, max_steps=4)
    (hooks,) = ModelHooks.find(trainer.model)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["aux/z_loss"] > 0 and 0 < log["route/mean/entropy"] <= 1
    assert hooks.session.progress == 1.0 and not hooks.add_aux_to_loss
    assert torch.isfinite(torch.tensor(log["loss"]))
