"""Previews: what is written is greedy, printed, kept in a file, and changes nothing of the training."""

import json

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.training.callbacks import GenerationPreview
from moe_adapt.training.callbacks.preview import first_answer, first_examples
from moe_adapt.training.datamodules import CausalLMData
from moe_adapt.training.modules import CausalLM
from tests.training.runs import routed, trainer
from tests.training.tiny import tiny_llama

ROWS = [{"prompt": f"say {word}", "response": f" {word}"} for word in ("red", "green", "blue") * 4]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("llama")))


def run(llama, folder, callbacks, **options):
    torch.manual_seed(0)
    module = CausalLM(llama, tuner=routed(dropout=0.1), lr=1e-2)
    settings = {"prompt": "{prompt}", "response": "{response}"} | options
    data = CausalLMData(llama, train=ROWS, validation=ROWS[:4], max_length=32, batch_size=4, **settings)
    runner = trainer(folder, max_epochs=2, callbacks=callbacks, enable_checkpointing=False)
    runner.fit(module, data)
    return module, data, [p.detach() for p in module.parameters() if p.requires_grad]


def test_every_epoch_the_same_prompts_and_the_training_unchanged(llama, tmp_path):
    module, data, trained = run(llama, tmp_path, [GenerationPreview(prompts=2, max_new_tokens=5)])
    rows = [json.loads(line) for line in (tmp_path / "previews.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"], row["expected"]) for row in rows] == [
        (step, f"say {word}", f" {word}") for step in (3, 6) for word in ("red", "green")
    ]
    module.max_new_tokens = 5
    with torch.no_grad():
        last = module.eval().predict_step(data.collate(data.splits["validation"].items[:2]), 0)
    assert [row["text"] for row in rows[2:]] == last
    _, _, same = run(llama, tmp_path, [])
    assert all(torch.equal(one, other) for one, other in zip(trained, same, strict=True))


def test_of_several_turns_the_first_answer_is_expected():
    assert first_answer([-100, -100, 5, 6, -100, 7]) == (2, 4)
    assert first_answer([-100, 5, 6]) == (1, 3)


def test_every_so_many_steps_of_plain_text(llama, tmp_path):
    texts = {"prompt": None, "response": None, "text_column": "prompt"}
    run(llama, tmp_path, [GenerationPreview(prompts=1, every_n_steps=1, max_new_tokens=3)], **texts)
    rows = [json.loads(line) for line in (tmp_path / "previews.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["prompt"].startswith("say red") and len(rows[0]["prompt"]) < 17


def test_nothing_for_choices_and_a_negative_number_is_an_error(llama, tmp_path):
    choices = {"response": None, "choices": ["{prompt}", "other"], "answer": "response"}
    rows = [row | {"response": 0} for row in ROWS]
    data = CausalLMData(llama, train=rows, validation=rows[:4], prompt="{prompt}", **choices)
    data.setup("fit")
    assert first_examples(data, 2) == []
    with pytest.raises(UserError, match="prompts is at least 0"):
        GenerationPreview(prompts=-1)
