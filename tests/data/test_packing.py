"""Packed rows: nothing lost, nothing learned across examples, the same loss as row by row."""

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from moe_adapt.backbones.packing import check_packing
from moe_adapt.data.packing import Packed, pack_examples, packed_batch
from moe_adapt.data.prompts import IGNORED, Example
from moe_adapt.errors import UserError
from moe_adapt.evaluation.likelihood import token_log_likelihood
from moe_adapt.training.datamodules import CausalLMData
from moe_adapt.training.modules import CausalLM
from tests.training.runs import routed, trainer
from tests.training.tiny import tiny_llama
from tests.tuner.tiny import randomize

ROWS = [{"prompt": "ab" * (i % 5 + 1), "response": " c" * (i % 3 + 1)} for i in range(14)]
TEMPLATES = {"prompt": "{prompt}", "response": "{response}"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_every_example_is_in_one_row_that_has_room(lengths):
    examples = [Example([number] * length, [number] * length) for number, length in enumerate(lengths)]
    rows = pack_examples(examples, 16)
    assert all(len(row.input_ids) <= 16 for row in rows)
    assert sorted(example.input_ids[0] for row in rows for example in row.examples) == [*range(len(lengths))]
    half_empty = [row for row in rows if len(row.input_ids) <= 8]
    assert len(half_empty) <= 1  # two of them would have shared a row


def test_positions_start_again_and_first_tokens_are_not_learned():
    rows = [
        Packed([Example([5, 6, 7], [5, 6, 7]), Example([8, 9], [IGNORED, 9])]),
        Packed([Example([4], [4])]),
    ]
    batch = packed_batch(rows, pad=0)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED] * 5]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("llama")))


def data(llama, **options):
    found = CausalLMData(
        llama, train=ROWS, validation=ROWS[:4], **TEMPLATES, max_length=32, train_on_prompt=True, **options
    )
    found.setup("fit")
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_of_packed_rows_is_that_of_row_by_row(llama, attention):
    L.seed_everything(0, verbose=False)
    module = CausalLM(llama, tuner=routed())
    module.model.base_model.model.set_attn_implementation(attention)
    randomize(module.model)
    packed, single = data(llama, packing=True), data(llama)
    rows = [row for row in packed.splits["train"].items]
    assert len(rows) < len(ROWS) / 2
    with torch.no_grad():
        together, _ = token_log_likelihood(*_scored(module.eval(), packed.collate(rows)))
        for row, found in zip(rows, together, strict=True):
            alone, _ = token_log_likelihood(*_scored(module, single.collate(row.examples)))
            torch.testing.assert_close(found, alone.sum(), rtol=1e-4, atol=1e-4)
    module.train()
    losses = []
    for batch in (
        packed.collate(rows),
        single.collate([example for row in rows for example in row.examples]),
    ):
        module.task_loss(batch)
        losses.append(module.tuner.aux_loss())
    torch.testing.assert_close(losses[0], losses[1])  # routers count real tokens only


def _scored(module, batch):
    return module(batch), batch["labels"]


def test_a_packed_run_trains(llama, tmp_path):
    module = CausalLM(llama, tuner=routed(), lr=1e-2)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(module, data(llama, packing=True, batch_size=2))
    assert runner.global_step > 0 and "val/perplexity" in runner.callback_metrics


def test_a_backbone_that_would_leak_is_refused(llama):
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="the examples of a packed row would see each other"):
        check_packing(bloom, "bloom")
    check_packing(CausalLM(llama).model, llama)


def test_options_that_exclude_packing(llama):
    for option, value in (("domain_column", "team"), ("on_disk", "cache")):
        with pytest.raises(UserError, match=f"packing and {option} .* exclude each other"):
            data(llama, packing=True, **{option: value})
    with pytest.raises(UserError, match="plain text is packed already"):
        CausalLMData(llama, train=ROWS, text_column="prompt", packing=True)
