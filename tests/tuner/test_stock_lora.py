"""Stock LoRA adapters as frozen experts: exact for unequal ranks, scales and layers; the rest is refused."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.model import adapted_layers
from tests.tuner.tiny import batch, llama

FLAVOURS = {
    "law": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "news": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "code": {
        "r": 3,
        "lora_alpha": 9,
        "target_modules": ["q_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 1},
    },
}


def stock(folder, seed=0, base=None, **options):
    model = peft.get_peft_model(base or llama(), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "lora_" in name or "modules_to_save.default" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def adapters(tmp_path):
    return {
        name: stock(tmp_path / name, seed, **options) for seed, (name, options) in enumerate(FLAVOURS.items())
    }


def routed(tmp_path, names=FLAVOURS, method="soft", **options):
    sources = [str(tmp_path / name) for name in names]
    config = RoutedLoraConfig(
        method=method, experts_from=sources, task_type="CAUSAL_LM", dropout=0.0, **options
    )
    return peft.get_peft_model(llama(), config)


def test_each_expert_is_its_adapter(adapters, tmp_path):
    model = routed(tmp_path)
    for name, lora in adapters.items():
        for layer in adapted_layers(model):
            names = layer.specs["default"].names
            own = lora.base_model.model.get_submodule(layer.site)
            if name in names:
                delta = layer.bank("default").delta_weight(names.index(name))
                torch.testing.assert_close(delta, own.get_delta_weight("default"), rtol=1e-5, atol=1e-6)
            else:
                assert not hasattr(own, "lora_A")


def test_with_its_gate_at_one_an_expert_gives_the_adapters_output(adapters, tmp_path):
    model = routed(tmp_path, ["news"]).eval()
    torch.testing.assert_close(
        model(**batch()).logits, adapters["news"](**batch()).logits, rtol=1e-5, atol=1e-5
    )


def test_equal_scales_keep_the_bits(tmp_path):
    for seed in (0, 1):
        stock(tmp_path / str(seed), seed, r=2, lora_alpha=6, target_modules=["v_proj"])
    model = routed(tmp_path, ["0", "1"])
    tensors = load_file(tmp_path / "1" / "adapter_model.safetensors")
    layer = adapted_layers(model)[0]
    key = f"base_model.model.{layer.site}.lora_B.weight"
    assert torch.equal(layer.factors("default")[1][:, 1], tensors[key])


def test_only_the_router_trains_and_the_experts_keep_their_bits(adapters, tmp_path):
    model = routed(tmp_path).train()
    assert not model.base_model.parameter_groups()["experts"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(3):
        (model(**batch()).loss + model.base_model.aux_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all("scorer__weight" in name for name in moved)
    assert sum("q_proj" in name for name in moved) == 2


def test_a_layer_that_one_adapter_has_has_one_candidate(adapters, tmp_path):
    model = routed(tmp_path)
    names = {layer.site.rsplit(".", 1)[-1]: layer.specs["default"].names for layer in adapted_layers(model)}
    assert names == {"q_proj": ["law", "news", "code"], "v_proj": ["law"], "down_proj": ["news"]}


def test_it_is_saved_whole_and_needs_its_sources_no_more(adapters, tmp_path):
    model = routed(tmp_path).eval()
    expected = model(**batch()).logits
    model.save_pretrained(tmp_path / "mixture")
    for name in FLAVOURS:
        (tmp_path / name / "adapter_config.json").unlink()
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "mixture", adapter_name="other").eval()
    assert torch.equal(loaded(**batch()).logits, expected)


def test_names_can_be_given(adapters, tmp_path):
    config = RoutedLoraConfig(
        method="soft", experts_from={"a": str(tmp_path / "law"), "b": str(tmp_path / "code")}
    )
    model = peft.get_peft_model(llama(), config)
    assert adapted_layers(model)[0].specs["default"].names == ["a", "b"]
    repeated = RoutedLoraConfig(method="soft", experts_from=[str(tmp_path / "law")] * 2)
    with pytest.raises(UserError, match="names repeat"):
        peft.get_peft_model(llama(), repeated)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "LOHA"}, "of type 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ],
)
def test_other_adapters_are_refused(adapters, tmp_path, change, message):
    path = tmp_path / "law" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        routed(tmp_path)


def test_another_base_is_refused(adapters, tmp_path):
    path = tmp_path / "law" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/other"}))
    base = llama()
    base.name_or_path = "org/this"
    config = RoutedLoraConfig(method="soft", experts_from=[str(tmp_path / "law")])
    with pytest.raises(UserError, match="was trained on 'org/other'"):
        peft.get_peft_model(base, config)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda name, value: (name.replace("layers.0", "layers.9"), value), "no linear layer of this base"),
        (lambda name, value: (name, value[:, :-1].contiguous()), "made for another base"),
        (lambda name, value: (name.replace("lora_A", "lora_magnitude"), value), "only one factor"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(adapters, tmp_path, edit, message):
    path = tmp_path / "law" / "adapter_model.safetensors"
    save_file(dict(edit(name, value) for name, value in load_file(path).items()), path)
    with pytest.raises(UserError, match=message):
        routed(tmp_path)


def test_what_is_no_adapter_is_refused(tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_config.json").write_text("{}")
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    for source, message in (
        (str(tmp_path / "pickled"), "pickled weights"),
        (str(tmp_path), "has no adapter_config.json"),
        ("nobody", "neither a folder nor a name"),
        ("nobody/nothing", "from the Hub"),
    ):
        with pytest.raises(UserError, match=message):
            peft.get_peft_model(llama(), RoutedLoraConfig(method="soft", experts_from=[source]))


def test_layers_and_ranks_are_the_adapters(tmp_path):
    for option in ({"r": 4}, {"target_modules": ["q_proj"]}, {"num_experts": 2}, {"alpha": 1.0}):
        with pytest.raises(UserError, match="exclude each other"):
            RoutedLoraConfig(method="soft", experts_from=["x/y"], **option)


def test_a_language_head_is_refused_and_left_out_if_one_says_so(tmp_path):
    stock(tmp_path / "headed", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(UserError, match=r"trained 'lm_head' whole.*leave_out_whole=True"):
        routed(tmp_path, ["headed"])
    with pytest.warns(UserWarning, match="left out"):
        found = routed(tmp_path, ["headed"], leave_out_whole=True)
    plain = stock(tmp_path / "plain", r=2, target_modules=["q_proj"])
    torch.testing.assert_close(found.eval()(**batch()).logits, plain(**batch()).logits)


def test_a_head_of_classes_is_left_out_with_a_warning(tmp_path):
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    base = LlamaForSequenceClassification(llama().config)
    peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="trained score of its own, which is left out"):
        peft.get_peft_model(base, RoutedLoraConfig(method="soft", experts_from=[str(tmp_path)]))


@pytest.mark.parametrize("method", ["arrow", "top_k", "lora_mixer"])
def test_an_empty_list_takes_adapters_back_and_packaged_values_give_way(method):
    own = RoutedLoraConfig(method=method)
    assert RoutedLoraConfig(method=method, experts_from=[]).to_dict() == own.to_dict()
    values = {name: getattr(own, name) for name in ("target_modules", "num_experts", "r", "alpha")}
    assert RoutedLoraConfig(method=method, experts_from=["x/y"], **values).experts_from == ["x/y"]


def test_embeddings_that_are_the_bases_own_are_dropped_and_others_refused(tmp_path, recwarn):
    """PEFT saves them beside an adapter of the language head."""
    stock(tmp_path / "headed", r=2, target_modules=["q_proj", "lm_head"])
    path = tmp_path / "headed" / "adapter_model.safetensors"
    tensors = load_file(path)
    (name,) = [name for name in tensors if "lora_" not in name]
    plain, kept = (
        stock(tmp_path / "plain", r=2, target_modules=["q_proj", "lm_head"]),
        routed(tmp_path, ["headed"]),
    )
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]
    torch.testing.assert_close(kept.eval()(**batch()).logits, plain(**batch()).logits)
    save_file({**tensors, name: tensors[name] + 1}, path)
    with pytest.raises(UserError, match=r"lm_head\.weight.* differs from the base's"):
        routed(tmp_path, ["headed"])
