"""Export, reopening, and what is said about folders that are no sound adapter."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from moe_adapt.errors import UserError
from moe_adapt.hub.base_code import BaseCode
from moe_adapt.hub.card import About
from moe_adapt.hub.export import export_model
from moe_adapt.hub.load import check_adapter_folder, load_adapter
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.config import FORMAT_VERSION
from tests.hub.tiny import build_base, build_model, logits


@pytest.fixture
def exported(tmp_path):
    model = build_model()
    report = export_model(model, tmp_path / "adapter")
    return model, report.folder


def test_reload_gives_equal_logits_under_any_name(exported):
    model, folder = exported
    assert torch.equal(logits(load_adapter(build_base(), folder)), logits(model))
    assert torch.equal(logits(load_adapter(build_base(), folder, adapter_name="other")), logits(model))
    assert torch.equal(logits(PeftModel.from_pretrained(build_base(), folder)), logits(model))


def test_folder_and_report(exported):
    _, folder = exported
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "export.json",
    ]
    assert not list(folder.parent.glob(".*"))


def test_another_adapter_name_is_exported_to_the_top_folder(tmp_path):
    model = build_model(adapter_name="first")
    folder = export_model(model, tmp_path / "adapter").folder
    assert torch.equal(logits(load_adapter(build_base(), folder)), logits(model))


def test_export_leaves_the_model_as_it_was(tmp_path):
    model = build_model().train()
    frozen = next(parameter for name, parameter in model.named_parameters() if "moe_adapt_A" in name)
    frozen.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    export_model(model, tmp_path / "adapter")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert list(model.peft_config) == ["default"]


def test_target_in_use(exported, tmp_path):
    model, folder = exported
    with pytest.raises(UserError, match="not empty"):
        export_model(model, folder)
    assert export_model(model, folder, overwrite=True).folder == folder
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not overwritten"):
        export_model(model, other, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        export_model(model, other / "thesis.tex")
    assert (other / "thesis.tex").read_text() == "precious"


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_adapt.hub.export_parts.make_card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(build_model(), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_lora_is_refused(tmp_path):
    model = get_peft_model(build_base(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="ROUTED_LORA is needed"):
        export_model(model, tmp_path / "adapter")
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match="of type 'LORA'"):
        check_adapter_folder(tmp_path / "lora")


def test_card(tmp_path):
    folder = export_model(
        build_model(),
        tmp_path / "adapter",
        about=About(
            metrics={"test/acc": 0.875},
            manifest={"command": "moe-adapt fit", "seed": 0, "versions": {"torch": "2"}},
            base_model="someone/tiny-llama",
            task="text-generation",
            dataset="stories",
        ),
    ).folder
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == "someone/tiny-llama"
    assert data["base_model_relation"] == "adapter"
    assert {"moe-adapt", "mixture-of-experts", "lora", "routed-lora"} <= set(data["tags"])
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.875
    for words in (
        "KeyError: 'ROUTED_LORA'",
        "import moe_adapt.tuner",
        "moe-adapt fit",
        "Seed 0",
        "| `mlp.gate_proj` |",
    ):
        assert words in card.text
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 0


def test_card_of_a_stream(tmp_path):
    stream = {
        "metrics": {"final_accuracy": 0.6, "forgetting_max": 0.3, "forward_transfer": None},
        "accuracy_matrix": {"total": [10, 5], "correct": [[9, -1], [6, 3]]},
        "tasks": [{"name": "animals"}, {"name": "plants"}],
    }
    about = About(task="image-classification", dataset="nature/split", stream=stream)
    card = ModelCard.load(export_model(build_model(), tmp_path / "a", about=about).folder / "README.md")
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {"stream/final_accuracy": 0.6, "stream/forgetting_max": 0.3}
    assert card.data.datasets == ["nature/split"]
    assert "continual-learning" in card.data.tags
    assert "| after animals | 0.900 |  |\n| after plants | 0.600 | 0.600 |" in card.text


def test_no_path_of_this_machine_is_published(tmp_path):
    base = tmp_path / "somewhere" / "mini-base"
    build_base().save_pretrained(base)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), RoutedLoraConfig(method="soft", task_type="CAUSAL_LM")
    )
    folder = export_model(model, tmp_path / "adapter").folder
    for name in ("README.md", "adapter_config.json"):
        assert str(tmp_path) not in (folder / name).read_text()
    assert "base_model" not in ModelCard.load(folder / "README.md").data.to_dict()
    assert "`mini-base`" in (folder / "README.md").read_text()


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not an adapter.s configuration"),
        (lambda folder: edit_config(folder, peft_type="LORA"), "of type 'LORA'"),
        (lambda folder: edit_config(folder, format_version=FORMAT_VERSION + 1), "upgrade moe-adapt"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: truncate(folder / "adapter_model.safetensors"), "is damaged"),
        (
            lambda folder: save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors"),
            "none of them",
        ),
    ],
)
def test_damaged_folders(exported, damage, message):
    _, folder = exported
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_adapter_folder(folder)
    with pytest.raises(UserError, match=message):
        load_adapter(build_base(), folder)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        check_adapter_folder(tmp_path / "nowhere")


def test_missing_and_unexpected_tensors(exported):
    _, folder = exported
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    removed = next(name for name in tensors if "moe_adapt_" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != removed}, path)
    with pytest.raises(UserError, match="do not belong together"):
        load_adapter(build_base(), folder)
    save_file({**tensors, removed.replace("layers.0", "layers.9"): tensors[removed].clone()}, path)
    with pytest.raises(UserError, match="do not belong together"):
        load_adapter(build_base(), folder)


def test_another_base(exported):
    _, folder = exported
    with pytest.raises(UserError, match="does not fit this LlamaForCausalLM"):
        load_adapter(build_base(hidden=32), folder)


def test_base_code_hides_folders(tmp_path):
    class Module:
        @classmethod
        def base_model(cls, backbone, num_classes, pooling="auto"):
            raise NotImplementedError

    arguments = {"backbone": str(tmp_path), "num_classes": 5, "pooling": "auto", "lr": 1.0}
    code = BaseCode.of_module(Module, arguments).ours
    assert code.endswith(f"base = Module.base_model(backbone='PATH_OF/{tmp_path.name}', num_classes=5)")


def test_where_stock_experts_lay_is_not_published(tmp_path):
    for name in ("one", "two"):
        get_peft_model(build_base(), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(
            tmp_path / name
        )
    sources = [str(tmp_path / name) for name in ("one", "two")]
    model = get_peft_model(build_base(), RoutedLoraConfig(method="top_k", experts_from=sources))
    folder = export_model(model.eval(), tmp_path / "adapter").folder
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
    assert torch.equal(logits(load_adapter(build_base(), folder)), logits(model))
