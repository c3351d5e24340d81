"""Models and tokenizers of every make are read right, or refused in one sentence."""

import json

import pytest
import torch
from transformers import AutoTokenizer, ResNetConfig, ResNetModel

from moe_adapt.backbones import ImageEncoder, TextEncoder
from moe_adapt.cli import main
from moe_adapt.drift.hoeffding import FastHoeffdingTree
from moe_adapt.errors import UserError
from moe_adapt.streams import TextStream
from moe_adapt.training.datamodules import TextClassificationData
from tests.training.tiny import tiny_bert, tiny_llama

ROWS = [{"text": f"{word} number {i}", "label": word} for word in ("cat", "sky", "sea") for i in range(4)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("pooling", ["auto", "model", "mean"])
def test_a_decoder_tells_texts_apart_that_begin_alike(llama, pooling):
    rows = [{"text": f"the same start, then {i}", "label": "ab"[i % 2]} for i in range(6)]
    task = TextStream(llama, rows, rows, increment=1).merged()
    encoder = TextEncoder(llama, pooling).eval()
    with torch.no_grad():
        features = encoder(task.collate([task.train[i] for i in range(6)]))
    assert len({tuple(vector) for vector in features.round(decimals=4).tolist()}) == 6


@pytest.mark.parametrize("pooling", ["model", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_features_do_not_depend_on_the_side_of_the_padding(llama, pooling, side):
    tokenizer = AutoTokenizer.from_pretrained(llama, padding_side=side)
    encoder, texts = TextEncoder(llama, pooling).eval(), ["short", "a longer text than the other one"]
    with torch.no_grad():
        alone = encoder(tokenizer(texts[:1], return_tensors="pt"))
        padded = encoder(tokenizer(texts, return_tensors="pt", padding=True))
    if side == "right":
        torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=1e-4)
    else:  # positions move with the padding, the token that is read does not
        assert torch.cosine_similarity(padded[:1], alone) > 0.8


def test_a_stream_of_texts_on_a_decoder_learns(llama, tmp_path):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["stream", "--config", "stream/text", "--config", "learner/ncm", "--backbone.backbone", llama]
    for split in ("train", "test"):
        words += [f"--stream.{split}", str(tmp_path / "d.jsonl")]
    assert main([*words, "--stream.increment", "1", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["final_accuracy"] > 0.5


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_a_tokenizer_without_a_padding_token(make, tmp_path):
    folder = make(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "</s>"
    tokenizer.save_pretrained(folder)
    data = TextClassificationData(str(folder), train=ROWS, validation_fraction=0)
    data.setup("fit")
    batch = data.collate([((text,), 0, None) for text in ("a", "a longer text")])
    assert batch["attention_mask"].sum(dim=1).unique().numel() == 2
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="neither a padding token nor an end token"):
        TextClassificationData(str(folder), train=ROWS)


def test_a_backbone_without_tokens(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    encoder = ImageEncoder(str(tmp_path), library="transformers").eval()
    assert encoder.width == 16
    assert encoder({"pixel_values": torch.zeros(2, 3, 32, 32)}).shape == (2, 16)


@pytest.mark.parametrize("value", [float("inf"), "text"])
def test_a_number_that_is_none_leaves_a_tree_as_it_was(value):
    tree = FastHoeffdingTree()
    tree.learn_one({"a": 1.0}, 0)
    with pytest.raises(ValueError, match="'a'"):
        tree.learn_one({"a": value}, 1)
    assert tree.predict_proba_one({"a": 1.0}) == {0: 1.0}


def test_one_class_only_on_the_command_line(llama, tmp_path, capsys):
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "only"}\n' * 4)
    words = ["fit", "--config", "base", "--config", "task/sequence_classification"]
    words += ["--config", "routed_lora/top_k", "--model.backbone", llama]
    words += ["--data.train", str(tmp_path / "one.jsonl"), "--data.max_length", "64"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "single class, 'only'" in capsys.readouterr().err
