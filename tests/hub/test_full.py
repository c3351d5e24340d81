"""A whole model: opened by transformers or timm without this package, with the measured gap in the card."""

import json
import subprocess
import sys

import peft
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from moe_adapt.errors import UserError
from moe_adapt.hub.card import About
from moe_adapt.hub.export import export_merged
from moe_adapt.hub.full import export_full
from moe_adapt.tuner import RoutedLoraConfig
from tests.hub.tiny import IDS, build_model, logits

MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
BATCHES = [{"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}]


def randomized(model):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "moe_adapt_" in name:
            parameter.data.normal_(generator=generator)
    return model.eval()


def classifier(**options):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    base = BertForSequenceClassification(BertConfig(vocab_size=32, num_labels=3, **size))
    settings = {"method": "top_k", "num_experts": 3, "r": 2, "target_modules": "ffn", "task_type": "SEQ_CLS"}
    return randomized(get_peft_model(base, RoutedLoraConfig(**settings | options)))


def rows(model):
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("options", [{"num_experts": 1}, {"method": "uniform_dense"}])
def test_constant_gates_give_the_routed_model(tmp_path, options):
    model = build_model(**options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = export_full(model, tmp_path / "full", gap_batches=BATCHES)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval()
    torch.testing.assert_close(logits(opened), logits(model), rtol=1e-4, atol=1e-4)
    assert report.record["word"] == "lossless" and report.gap.agreement == 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_mean_gates_give_what_the_merged_lora_gives_and_the_gap_is_in_the_card(tmp_path):
    model = build_model(method="top_k", num_experts=4)
    merged = export_merged(model, tmp_path / "merged", calibration=BATCHES, gap_batches=BATCHES)
    full = export_full(
        model, tmp_path / "full", calibration=BATCHES, gap_batches=BATCHES, data_names=("train", "validation")
    )
    assert full.gap.kl_mean == pytest.approx(merged.gap.kl_mean, rel=1e-3) and full.gap.kl_mean > 1e-4
    card = ModelCard.load(tmp_path / "full" / "README.md")
    assert f"| mean KL divergence (nats) | {full.gap.kl_mean:.3e} |" in card.text
    assert "**lossy**" in card.text and "licence of the base" in card.text
    assert card.data.library_name == "transformers"
    assert "opened by transformers (AutoModelForCausalLM)" in str(full)


def test_a_classifier_keeps_its_head_and_the_names_of_its_classes(tmp_path):
    model = classifier(modules_to_save=["classifier"])
    names = ["card", "loan", "fraud"]
    about = About(answering={"task": "text-classification", "class_names": names})
    model.base_model.model.classifier.modules_to_save["default"].weight.data.normal_()
    gap_rows = [{"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 2])}]
    report = export_full(model, tmp_path / "full", calibration=gap_rows, gap_batches=gap_rows, about=about)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full").eval()
    assert opened.config.id2label == dict(enumerate(names))
    divergence = rows(model).log_softmax(-1).exp() * (
        rows(model).log_softmax(-1) - rows(opened).log_softmax(-1)
    )
    assert report.gap.kl_mean == pytest.approx(float(divergence.sum(-1).mean()), rel=1e-3)
    assert model.base_model.model.config.id2label[0] == "LABEL_0"


def test_weights_in_half_precision_are_rounded_and_said_to_be(tmp_path):
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)).bfloat16()
    config = RoutedLoraConfig(method="uniform_dense", num_experts=2, r=2, target_modules=["c_attn"])
    model = randomized(get_peft_model(base, config))
    report = export_full(model, tmp_path / "full", gap_batches=BATCHES)
    assert (report.record["word"], report.record["dtype"]) == ("lossy", "bfloat16")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert opened.dtype == torch.bfloat16
    layer = model.base_model.model.transformer.h[0].attn.c_attn  # GPT-2 keeps its weights transposed
    expected = (layer.base_layer.weight.float() + layer.get_delta_weight("default")).bfloat16()
    assert torch.equal(opened.transformer.h[0].attn.c_attn.weight, expected)


def test_a_timm_model_with_convolutions(tmp_path):
    torch.manual_seed(0)
    base = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    config = RoutedLoraConfig(method="uniform_dense", num_experts=2, r=2, target_modules="all-conv")
    model = randomized(get_peft_model(base, config))
    about = About(answering={"task": "image-classification", "class_names": ["cat", "dog", "bird"]})
    report = export_full(model, tmp_path / "full", about=about)
    opened = timm.create_model(f"local-dir:{tmp_path / 'full'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(opened(pixels), model(pixels), rtol=1e-3, atol=1e-3)
    assert report.record["opened_by"]["library"] == "timm"
    assert json.loads((tmp_path / "full" / "config.json").read_text())["label_names"] == [
        "cat",
        "dog",
        "bird",
    ]


def test_a_fresh_process_opens_it_without_this_package_and_no_file_names_a_path(tmp_path):
    model = build_model(method="uniform_dense")
    folder = tmp_path / "full"
    export_full(model, folder)
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}).eval()
print(float(model(input_ids=torch.arange(12).reshape(2, 6)).logits.sum()))
assert not any(name.startswith(("moe_adapt", "peft")) for name in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.splitlines()[-1]) == pytest.approx(float(logits(model).sum()), rel=1e-3)
    texts = [file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".md")]
    assert not any(str(tmp_path) in text for text in texts)


def test_what_cannot_be_one_model_says_so(tmp_path):
    routed = build_model(method="top_k", num_experts=4)
    with pytest.raises(UserError, match="needs calibration data"):
        export_full(routed, tmp_path / "full")
    bare = torch.nn.Sequential(torch.nn.Linear(4, 4))
    config = RoutedLoraConfig(method="uniform_dense", num_experts=2, r=2, target_modules=["0"])
    with pytest.raises(UserError, match="Sequential is no class that transformers or timm opens"):
        export_full(get_peft_model(bare, config), tmp_path / "full")
    tied = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    config = RoutedLoraConfig(method="uniform_dense", num_experts=2, r=2, target_modules=["lm_head"])
    with pytest.raises(UserError, match=r"weight of lm_head is also 'transformer\.wte\.weight'"):
        export_full(peft.get_peft_model(tied, config), tmp_path / "full")
    gate = {"name": "condense_bias", "gamma": 0.5, "condensers": 1}
    inside = RoutedLoraConfig(method="condenser", target_modules="moe", r=2, modifiers=[gate])
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = MixtralForCausalLM(
        MixtralConfig(vocab_size=32, num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=2, **size)
    )
    model = peft.get_peft_model(base, inside)
    for export in (export_full, export_merged):
        with pytest.raises(UserError, match="inside the base's own mixture"):
            export(model, tmp_path / "full")
    assert list(tmp_path.iterdir()) == []
