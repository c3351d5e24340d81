"""A base of which parts lie on the disk (`device_map`) infers and trains as one that is in memory."""

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from tests.tuner.tiny import adapted, adapter_gradients, batch, llama

pytest.importorskip("accelerate", reason="needs accelerate")

#: The second block and the last norm lie on the disk; their weights are read for each forward.
PLACES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload")
    llama().save_pretrained(folder / "base")
    adapted(base=llama()).save_pretrained(folder / "adapter")
    return folder


def offloaded(folder, tmp_path):
    base = LlamaForCausalLM.from_pretrained(
        folder / "base", device_map=PLACES, offload_folder=tmp_path / "offloaded"
    )
    assert base.model.layers[1].mlp.down_proj.weight.device.type == "meta"
    return base


def test_a_saved_adapter_gives_the_same_answers(saved, tmp_path):
    expected = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(saved / "base"), saved / "adapter")
    found = adapted(base=offloaded(saved, tmp_path))  # `from_pretrained` of PEFT places the base anew
    found.load_adapter(saved / "adapter", "trained")
    found.set_adapter("trained")
    found.eval()
    with torch.no_grad():
        torch.testing.assert_close(found(**batch()).logits, expected.eval()(**batch()).logits)


def test_gradients_are_the_same_and_the_adapter_is_saved(saved, tmp_path):
    runs = []
    for base in (LlamaForCausalLM.from_pretrained(saved / "base"), offloaded(saved, tmp_path)):
        model = adapted(base=base).train()
        loss = model(**batch()).loss + model.base_model.aux_loss()
        loss.backward()
        runs.append((loss.detach(), adapter_gradients(model)))
    (loss, expected), (other, found) = runs
    torch.testing.assert_close(other, loss)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    model.save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "adapter_model.safetensors").is_file()
