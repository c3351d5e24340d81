"""The forms that PEFT opens alone: experts, and one merged LoRA with its measured gap."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.hub.calibration import mean_gates
from moe_adapt.hub.export import export_experts, export_merged
from moe_adapt.hub.gap import measure_gap, substituted
from moe_adapt.hub.mixture import concatenate
from moe_adapt.tuner.model import adapted_layers
from tests.hub.tiny import IDS, build_base, build_model, logits

MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
BATCHES = [{"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}]


def only_expert(model, expert):
    """Logits of the model with all gates but one expert's closed."""
    sites = {}
    for layer in adapted_layers(model.base_model.model):
        bank = layer.bank("default")
        sites[layer.site] = concatenate(bank, F.one_hot(torch.tensor(expert), bank.num_experts).float())
    with substituted(model.base_model, sites):
        return logits(model)


def test_every_expert_is_an_ordinary_lora(tmp_path):
    model = build_model(num_experts={r"\.0\.": 3, "default": 2})
    model.base_model.freeze_experts([1])
    before = logits(model)
    report = export_experts(model, tmp_path / "experts")
    assert report.record["experts"] == ["experts/0", "experts/1", "experts/2"]
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    for expert in range(2):
        stock = PeftModel.from_pretrained(build_base(), tmp_path / "experts", subfolder=f"experts/{expert}")
        assert stock.peft_config["default"].peft_type == "LORA"
        torch.testing.assert_close(logits(stock), only_expert(model, expert), rtol=1e-5, atol=1e-5)
    third = PeftModel.from_pretrained(build_base(), tmp_path / "experts", subfolder="experts/2")
    assert all(".layers.0." in name for name in third.state_dict() if "lora_A" in name)


@pytest.mark.parametrize("options", [{"num_experts": 1}, {"method": "uniform_dense"}])
def test_constant_gates_merge_without_loss(tmp_path, options):
    model = build_model(**options)
    report = export_merged(model, tmp_path / "merged", gap_batches=BATCHES)
    assert report.record["word"] == "lossless"
    assert report.gap.kl_max < 1e-5  # float32
    assert report.gap.agreement == 1.0
    stock = PeftModel.from_pretrained(build_base(), tmp_path / "merged")
    torch.testing.assert_close(logits(stock), logits(model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(stock.merge_and_unload()), logits(model), rtol=1e-4, atol=1e-4)


def test_calibrated_gates_are_the_mean_of_the_used_gates(tmp_path):
    model = build_model(method="top_k", num_experts=4)
    tuner = model.base_model
    found = mean_gates(tuner, "default", BATCHES, lambda batch: model(**batch))
    with tuner.record(), torch.inference_mode():
        model(**BATCHES[0])
    for record in tuner.hooks.session.context.records.values():
        gates = record.gates[record.mask]
        assert len(gates) == 10 == found[record.site].tokens
        torch.testing.assert_close(found[record.site].mean.float(), gates.mean(dim=0))
        torch.testing.assert_close(found[record.site].std.float(), gates.std(dim=0, correction=0))


def test_a_routed_mixture_merges_with_a_measured_gap(tmp_path):
    model = build_model(method="top_k", num_experts=4).train()
    report = export_merged(model, tmp_path / "merged", calibration=BATCHES, gap_batches=BATCHES)
    assert model.training
    model.eval()
    record = json.loads((tmp_path / "merged" / "export.json").read_text())
    assert (record["word"], record["gates"], record["rank"]) == ("lossy", "calibrated", 8)
    stock = PeftModel.from_pretrained(build_base(), tmp_path / "merged")
    with torch.inference_mode():
        routed, merged = (
            m(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()].log_softmax(-1) for m in (model, stock)
        )
    divergence = (routed.exp() * (routed - merged)).sum(-1)
    assert record["gap"]["rows"] == 10
    assert record["gap"]["kl_mean"] == pytest.approx(float(divergence.mean()), rel=1e-3)
    assert record["gap"]["kl_max"] == pytest.approx(float(divergence.max()), rel=1e-3)
    assert record["gap"]["kl_mean"] > 1e-4
    assert 0 <= record["gap"]["accuracy_merged"] <= 1
    assert "KL to the routed model" in str(report)
    text = ModelCard.load(tmp_path / "merged" / "README.md").text
    assert f"| mean KL divergence (nats) | {record['gap']['kl_mean']:.3e} |" in text
    assert "**lossy**" in text


def test_a_smaller_rank_says_what_it_cuts_off(tmp_path):
    model = build_model(method="top_k", num_experts=4)
    report = export_merged(model, tmp_path / "merged", calibration=BATCHES, max_rank=3)
    assert report.record["rank"] == 3
    assert 0 < report.record["largest_error"] < 1
    assert f"at most {report.record['largest_error']:.3f}" in (tmp_path / "merged/README.md").read_text()
    assert "It was not measured." in (tmp_path / "merged/README.md").read_text()
    assert PeftModel.from_pretrained(build_base(), tmp_path / "merged").peft_config["default"].r == 3


def test_gap_of_a_classifier_and_of_multiple_choice():
    model = build_model(method="top_k", num_experts=4)
    sites = {
        layer.site: concatenate(layer.bank("default"), torch.full((4,), 0.25))
        for layer in adapted_layers(model.base_model.model)
    }

    def last(batch):
        return model(input_ids=batch["input_ids"]).logits[:, -1]

    with torch.inference_mode():
        right = last(BATCHES[0]).argmax(-1)
    gap = measure_gap(model.base_model, sites, [{"input_ids": IDS, "labels": right}] * 2, last)
    assert (gap.rows, gap.accuracy_routed) == (4, 1.0)
    assert gap.accuracy_merged == gap.agreement

    choices = {**BATCHES[0], "answer": torch.tensor([0]), "choice_row": torch.tensor([0, 0])}
    gap = measure_gap(model.base_model, sites, [choices], lambda batch: model(input_ids=IDS).logits)
    assert {gap.accuracy_routed, gap.accuracy_merged} <= {0.0, 1.0}
    with pytest.raises(UserError, match="no row"):
        measure_gap(model.base_model, sites, [], last)


def test_what_cannot_be_merged_says_so(tmp_path):
    model = build_model(method="top_k", num_experts=4)
    with pytest.raises(UserError, match="needs calibration data"):
        export_merged(model, tmp_path / "merged")
    with pytest.raises(UserError, match="no token of the calibration data"):
        export_merged(model, tmp_path / "merged", calibration=[])
    with pytest.raises(UserError, match="max_rank must be at least 1"):
        export_merged(model, tmp_path / "merged", calibration=BATCHES, max_rank=0)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(next(iter(adapted_layers(model))), type(next(iter(adapted_layers(build_model())))))


@pytest.mark.slow
def test_peft_alone_opens_both_forms_in_a_fresh_process(tmp_path):
    model = build_model(method="top_k", num_experts=4)
    build_base().save_pretrained(tmp_path / "base")
    export_experts(model, tmp_path / "experts")
    export_merged(model, tmp_path / "merged", calibration=BATCHES)
    script = f"""
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
for name, options in ("experts", dict(subfolder="experts/3")), ("merged", {{}}):
    folder = {str(tmp_path)!r} + "/" + name
    base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
    model = PeftModel.from_pretrained(base, folder, **options).eval()
    with torch.inference_mode():
        print(json.dumps(model(input_ids=torch.arange(12).reshape(2, 6)).logits.flatten().tolist()))
assert not any(name.startswith("moe_adapt") for name in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expert, merged = (torch.tensor(json.loads(line)) for line in result.stdout.splitlines())
    torch.testing.assert_close(expert, only_expert(model, 3).flatten(), rtol=1e-5, atol=1e-5)
    found = mean_gates(model.base_model, "default", BATCHES, lambda batch: model(**batch))
    sites = {
        layer.site: concatenate(layer.bank("default"), found[layer.site].mean)
        for layer in adapted_layers(model.base_model.model)
    }
    with substituted(model.base_model, sites):
        torch.testing.assert_close(merged, logits(model).flatten(), rtol=1e-5, atol=1e-5)
