"""Kinds of banks in a model: LoRA's bits, merging, export, edits, mixed batches, compilers, convolutions."""

import peft
import pytest
import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.hub.export import export_experts
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.edit import add_experts, duplicate_experts
from moe_adapt.tuner.model import adapted_layers
from tests.tuner.test_compile import compiled, same_in_training
from tests.tuner.tiny import adapted, batch, llama, randomize

SHARED = ["film", "chain"]
NO_SHIFT = {"name": "film", "shift": False}


def test_one_film_expert_at_its_start_is_pefts_lora_bit_for_bit():
    model = adapted("film", num_experts=1, selector="dense")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"]}
    lora = peft.get_peft_model(llama(), peft.LoraConfig(**options))
    for layer in adapted_layers(model):
        nn.init.ones_(layer.moe_adapt_bank__gamma["default"])
        nn.init.zeros_(layer.moe_adapt_bank__beta["default"])
        theirs = lora.base_model.model.get_submodule(layer.site)
        theirs.lora_A["default"].weight.data = layer.moe_adapt_A["default"].data[0]
        theirs.lora_B["default"].weight.data = layer.moe_adapt_B["default"].data[:, 0]
    assert torch.equal(model.eval()(**batch()).logits, lora.eval()(**batch()).logits)


def test_slices_have_the_scale_of_the_whole_and_keep_their_size_when_read_again(tmp_path):
    model = adapted("slices", r=8, alpha=16)
    layer = adapted_layers(model)[0]
    assert layer.scales["default"] == 2.0 and layer.moe_adapt_A["default"].shape == (4, 2, 32)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    assert adapted_layers(loaded)[0].specs["default"] == layer.specs["default"]


@pytest.mark.parametrize("method", SHARED)
def test_what_is_no_change_of_weight_is_not_merged_or_exported_as_one(method, tmp_path):
    model = adapted(method, num_experts=1, selector="dense").eval()
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(UserError, match="keep the adapter as it is"):
        export_experts(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_film_without_a_shift_merges_and_exports_its_experts(tmp_path):
    model = adapted("film", num_experts=2, bank=NO_SHIFT, scorer="uniform", selector="dense").eval()
    expected = model(**batch()).logits
    export_experts(model, tmp_path / "out")
    stock = peft.PeftModel.from_pretrained(llama(), tmp_path / "out" / "experts" / "1").eval()
    for layer in adapted_layers(model):
        layer.moe_adapt_bank__gamma["default"].data[0] = layer.moe_adapt_bank__gamma["default"].data[1]
    torch.testing.assert_close(stock(**batch()).logits, model(**batch()).logits, rtol=1e-4, atol=1e-5)
    other = adapted("film", num_experts=2, bank=NO_SHIFT, scorer="uniform", selector="dense").eval()
    torch.testing.assert_close(other.merge_and_unload()(**batch()).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [*SHARED, "atoms"])
def test_pools_that_cannot_be_edited_say_so_and_stay(method):
    model = adapted(method, num_experts=4, **({"selector": "product_top_k"} if method == "atoms" else {}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for edit in (add_experts, lambda tuner: duplicate_experts(tuner, [0], twin_exclusive=True)):
        with pytest.raises(UserError, match="cannot be edited"):
            edit(model.base_model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", SHARED)
def test_experts_that_share_factors_cannot_be_frozen_by_themselves(method):
    with pytest.raises(UserError, match=f"bank='{method}'"):
        adapted(method).base_model.freeze_experts([0])


def test_a_batch_may_mix_them_with_other_adapters():
    model = adapted("film")
    for name, method in (("chain", "chain"), ("plain", "top_k")):
        options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "dropout": 0.0}
        model.add_adapter(name, RoutedLoraConfig(method=method, task_type="CAUSAL_LM", **options))
    randomize(model)
    model.eval()
    names = ["film", "chain", "plain", "__base__"]
    inputs = batch(rows=4)
    mixed = model(**inputs, adapter_names=["default" if name == "film" else name for name in names]).logits
    for row, name in enumerate(names):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        if name == "__base__":
            with model.disable_adapter():
                expected = model(**one).logits
        else:
            model.set_adapter("default" if name == "film" else name)
            expected = model(**one).logits
        torch.testing.assert_close(mixed[row : row + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["film", pytest.param("chain", marks=pytest.mark.slow)])
def test_they_compile_in_one_graph(method):
    torch._dynamo.reset()
    same_in_training(method, targets=["q_proj"])
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slices", "atoms"])
def test_slices_and_atoms_compile_in_one_graph(method):
    torch._dynamo.reset()
    model = adapted(method, target_modules=["q_proj"], num_experts=4, r=4).eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, "eager")(**batch()).logits, model(**batch()).logits)
    torch._dynamo.reset()


@pytest.mark.parametrize("method", [*SHARED, "slices", "atoms"])
def test_they_train_in_mixed_precision_on_a_half_precision_base(method):
    options = {"target_modules": ["q_proj"], "num_experts": 4, "r": 4}
    if method == "atoms":
        options["selector"] = "product_top_k"
    model = adapted(method, llama(torch.bfloat16), **options).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss + model.base_model.aux_loss()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("granularity", ["position", "image"])
@pytest.mark.parametrize("method", [*SHARED, "slices", "atoms"])
def test_beside_a_convolution_they_are_what_they_are_on_patches(method, granularity):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1))
    options = {"target_modules": ["0"], "num_experts": 4, "r": 4, "dropout": 0.0, "granularity": granularity}
    if method == "atoms":
        options["selector"] = "product_top_k"
    model = peft.get_peft_model(base, RoutedLoraConfig(method=method, **options)).eval()
    randomize(model)
    (layer,) = adapted_layers(model)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), model.base_model.record():
        found = model(x)
    (record,) = model.base_model.hooks.session.context.records.values()
    patches = layer.geometry.patches(x).flatten(0, 1)
    gates = record.gates if granularity == "position" else record.gates.repeat_interleave(16, dim=0)
    with model.disable_adapter():
        plain = model(x).flatten(2).transpose(1, 2).reshape(-1, 5)
    expected = layer.bank("default")(patches, gates, plain).view(2, 4, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "film", "shared_a": True}, "exclude each other"),
        ({"method": "slices", "experts_from": ["x"]}, "exclude each other"),
        ({"method": "arrow", "bank": "film"}, "reads factors of each expert"),
        ({"method": "film", "aux_losses": [{"name": "router_coupling", "weight": 1.0}]}, "reads factors"),
        ({"bank": "flim"}, "Did you mean 'film'"),
        ({"bank": {"name": "film", "shfit": True}}, "has no option 'shfit'"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        RoutedLoraConfig(**options)


def test_older_releases_refuse_them_by_the_version_of_the_format():
    assert RoutedLoraConfig(method="film").format_version == 3
    assert RoutedLoraConfig(method="top_k").format_version == 1
