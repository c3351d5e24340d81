import json
import shutil

import lightning as L
import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModel, ViTConfig, ViTForImageClassification

from moe_adapt.errors import UserError
from moe_adapt.training.modules import ImageClassifier, SequenceClassifier
from moe_adapt.tuner.early import early_experts
from tests.training.runs import NUM_CLASSES, loader, routed, text_batches, trainer
from tests.training.tiny import tiny_llama


def images(size: int = 2, pixels: int = 160) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(size, 3, pixels, pixels), "labels": torch.tensor([0, 2][:size])}


@pytest.fixture
def mean_pooled(bert, tmp_path) -> str:
    folder = tmp_path / "sentences"
    shutil.copytree(bert, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return str(folder)


def test_auto_pooling_follows_sentence_transformers(bert, mean_pooled):
    assert SequenceClassifier(bert, 2).settings()["pooling"] == "model"
    assert SequenceClassifier(mean_pooled, 2).settings()["pooling"] == "mean"


def test_mean_pooling_ignores_padding_and_equals_the_formula(mean_pooled):
    module = SequenceClassifier(mean_pooled, NUM_CLASSES).eval()
    batch = text_batches(1)[0]
    encoder = AutoModel.from_pretrained(mean_pooled).eval()
    tokens = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = encoder(**tokens).last_hidden_state[:, :7].mean(dim=1)
        assert torch.allclose(module(batch), module.model.classifier(hidden), atol=1e-6)
        changed = batch | {"input_ids": batch["input_ids"].index_fill(1, torch.tensor([7, 8]), 55)}
        assert torch.allclose(module(batch), module(changed), atol=1e-6)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_gate_before_all_layers_reads_the_embeddings_inside_and_trains(bert, tmp_path, pooling):
    tuner = routed("read_me", target_modules=["query", "value"], scorer={"name": "pre_gate", "width": 8})
    module = SequenceClassifier(bert, NUM_CLASSES, tuner=tuner, pooling=pooling, lr=1e-2)
    gate = {name: value for name, value in module.named_parameters() if "scorer__gate" in name}
    before = {name: value.detach().clone() for name, value in gate.items()}
    trainer(tmp_path).fit(module, loader(text_batches(3)))
    assert gate and all(not torch.equal(value, before[name]) for name, value in gate.items())
    batch = text_batches(1, seed=9)[0]
    tokens = (batch["input_ids"], batch["attention_mask"])
    module.eval()
    with torch.no_grad(), module.tuner.record():
        module(batch)
        early = early_experts(module.model, *tokens)[tokens[1].bool()]
    for record in module.tuner.hooks.session.context.records.values():
        assert torch.equal(record.selected[tokens[1].flatten().bool()], early)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_an_exported_adapter_goes_onto_base_model(bert, tmp_path, pooling):
    module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed("dynmole"), pooling=pooling, lr=1e-2)
    trainer(tmp_path).fit(module, loader(text_batches(3)))
    module.model.save_pretrained(tmp_path / "adapter")
    base = SequenceClassifier.base_model(bert, NUM_CLASSES, pooling)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = text_batches(1, seed=9)[0]
    labels = batch.pop("labels")
    with torch.no_grad():
        output = reloaded(**batch)
        output = output if pooling == "mean" else output.logits
        assert torch.equal(output, module.eval()(batch | {"labels": labels}))


def test_a_pooler_that_the_files_lack_is_trained_and_saved(bert, tmp_path):
    AutoModel.from_pretrained(bert, add_pooling_layer=False).save_pretrained(tmp_path / "no_pooler")
    module = SequenceClassifier(str(tmp_path / "no_pooler"), 2, tuner=routed(target_modules=["query"]))
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    assert any("pooler.dense.modules_to_save" in name for name in trainable)


def test_files_of_another_architecture_are_refused(bert, tmp_path):
    AutoModel.from_pretrained(bert, num_hidden_layers=1).save_pretrained(tmp_path / "half")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match="16 frozen weights are missing"):
        SequenceClassifier(str(tmp_path / "half"), 2)


def test_a_decoder_can_classify(tmp_path):
    module = SequenceClassifier(str(tiny_llama(tmp_path, pad_token_id=None)), NUM_CLASSES, tuner=routed())
    trainer(tmp_path / "run").fit(module, loader(text_batches(2)), loader(text_batches(1)))
    assert any("score.modules_to_save" in n for n, p in module.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_label_out_of_range_is_named(bert, tmp_path, label, stage):
    batch = text_batches(1)[0]
    batch["labels"][1] = label
    module = SequenceClassifier(bert, NUM_CLASSES)
    with pytest.raises(UserError, match=rf"label {label} is out of range: the model has 4 classes, 0 to 3"):
        getattr(trainer(tmp_path), stage)(module, loader([batch]))


def test_metrics_are_over_the_whole_epoch(bert, tmp_path):
    module = SequenceClassifier(bert, NUM_CLASSES)
    batches = [*text_batches(1, size=4), *text_batches(1, size=2, seed=1)]
    [metrics] = trainer(tmp_path).test(module, loader(batches), verbose=False)
    predictions = torch.cat([p["prediction"] for p in trainer(tmp_path).predict(module, loader(batches))])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert metrics["test/acc"] == pytest.approx((predictions == labels).float().mean().item())
    assert set(metrics) == {"test/loss", "test/acc", "test/f1"}


def test_predictions_are_probabilities(bert, tmp_path):
    [output] = trainer(tmp_path).predict(SequenceClassifier(bert, 3), loader(text_batches(1)))
    assert output["probabilities"].shape == (4, 3)
    assert torch.allclose(output["probabilities"].sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_backbones_train(tmp_path, name):
    L.seed_everything(0, verbose=False)
    targets = "all-linear" if name == "test_vit" else None
    tuner = routed("dynmole", target_modules=targets) if targets else None
    module = ImageClassifier(name, 3, tuner=tuner, pretrained=False, lr=1e-2)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer(tmp_path).fit(module, loader([images()] * 3), loader([images()]))
    assert all(torch.equal(before[n], p) != p.requires_grad for n, p in module.named_parameters())


def test_timm_weights_from_a_file_all_but_the_head(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("test_vit", num_classes=7)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    for file in ("vit.safetensors", "vit.pth"):
        module = ImageClassifier("test_vit", 3, checkpoint=str(tmp_path / file))
        own = module.model.state_dict()
        same = {
            n for n, t in source.state_dict().items() if own[n].shape == t.shape and torch.equal(own[n], t)
        }
        assert own.keys() - same == {"head.weight", "head.bias"}


def test_timm_position_embeddings_are_resampled(tmp_path):
    source = timm.create_model("test_vit", num_classes=0)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    options = {"checkpoint": str(tmp_path / "vit.safetensors"), "model_kwargs": {"img_size": 96}}
    module = ImageClassifier("test_vit", 3, tuner=routed(), **options)
    assert module(images(pixels=96)).shape == (2, 3)


def test_bad_image_backbones_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"Did you mean .*test_vit"):
        ImageClassifier("test_vitt", 3)
    with pytest.raises(UserError, match="there are no weights"):
        ImageClassifier("test_vit", 3, checkpoint=str(tmp_path / "absent.pth"))
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="frozen weights are missing"):
        ImageClassifier("test_vit", 3, checkpoint=str(tmp_path / "foreign.safetensors"))


def test_a_transformers_vision_model(tmp_path):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    module = ImageClassifier(str(tmp_path / "vit"), 3, tuner=routed(), library="transformers")
    trainer(tmp_path / "run").fit(module, loader([images(pixels=32)] * 2))
    assert module(images(pixels=32)).shape == (2, 3)
