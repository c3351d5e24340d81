"""`--model.quantize`: a base in four or eight bits is trained over, exported, opened again and asked."""

import json

import pytest

from moe_adapt.errors import UserError
from moe_adapt.hub.base_code import BaseCode
from moe_adapt.serving import open_model
from moe_adapt.training.modules import CausalLM, SequenceClassifier
from tests.training.tiny import tiny_bert, tiny_llama

COLOURS = ["red", "green", "blue"]
TUNER = [
    "--config",
    "routed_lora/top_k",
    "--model.tuner.target_modules",
    "ffn",
    "--model.tuner.num_experts",
    "2",
]


def trained(moe_adapt, tmp_path, task, backbone, rows, bits, *words):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data.train", str(tmp_path / "rows.jsonl"), "--data.max_length", "32"]
    backbone = ["--model.backbone", str(backbone), "--model.quantize", bits]
    run = ["--out", str(tmp_path / "run"), "--trainer.max_epochs", "1", *words]
    done = moe_adapt("fit", "--config", task, *TUNER, *backbone, *data, *run)
    assert done.code == 0, done.err
    done = moe_adapt("export", str(tmp_path / "run"), "--to", str(tmp_path / "adapter"))
    assert done.code == 0, done.err
    return tmp_path / "run", tmp_path / "adapter"


def quantised_layers(model):
    kinds = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
    names = [type(module).__name__ for module in model.modules()]
    return {bits for bits, kind in kinds.items() if kind in names}


@pytest.mark.slow
def test_classifier_in_four_bits(moe_adapt, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    bert = tiny_bert(tmp_path / "bert", hidden_size=64)
    rows = [{"text": f"a {COLOURS[i % 3]} thing {i}", "label": COLOURS[i % 3]} for i in range(24)]
    run, adapter = trained(moe_adapt, tmp_path, "task/sequence_classification", bert, rows, "4bit")
    card = (adapter / "README.md").read_text()
    assert "quantize='4bit'" in card
    answers = []
    for source, base in ((run, None), (adapter, str(bert))):
        model = open_model(source, base)
        assert quantised_layers(model.model) == {"4bit"}
        answers.append([found.row(top=True) for found in model([(row["text"],) for row in rows], top=3)])
    assert answers[0] == answers[1]
    done = moe_adapt(
        "test", "--config", str(run / "moe_adapt_config.yaml"), "--data.test", str(tmp_path / "rows.jsonl")
    )
    assert done.code == 0, done.err


@pytest.mark.slow
def test_language_model_in_eight_bits(moe_adapt, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    llama = tiny_llama(tmp_path / "llama", hidden_size=64)
    rows = [{"prompt": f"say {word}", "response": word} for word in COLOURS * 4]
    run, adapter = trained(moe_adapt, tmp_path, "task/causal_lm", llama, rows, "8bit")
    texts = []
    for source, base in ((run, []), (adapter, ["--base", str(llama)])):
        words = ["--prompt", "say red", "--max_new_tokens", "6"]
        done = moe_adapt("generate", str(source), *base, *words)
        assert done.code == 0, done.err
        texts.append(done.out)
    assert texts[0] == texts[1]
    assert quantised_layers(open_model(adapter, str(llama)).model) == {"8bit"}


def test_cards_say_how_the_base_is_held(tmp_path):
    code = BaseCode.of_module(CausalLM, {"backbone": "user/model"})
    assert "Bits" not in code.stock and "quantize" not in code.ours
    code = BaseCode.of_module(CausalLM, {"backbone": "user/model", "quantize": "8bit"})
    assert "import AutoModelForCausalLM, BitsAndBytesConfig\n" in code.stock
    assert "quantization_config=BitsAndBytesConfig(load_in_8bit=True))" in code.stock
    bert = str(tiny_bert(tmp_path / "bert"))
    pooled = {"backbone": bert, "num_classes": 2, "pooling": "mean", "quantize": "4bit"}
    code = BaseCode.of_module(SequenceClassifier, pooled).stock
    assert "from transformers import AutoModel, BitsAndBytesConfig\n" in code and "load_in_4bit=True" in code


def test_missing_package_and_gguf_are_one_sentence(tmp_path, monkeypatch):
    from moe_adapt import extras

    with pytest.raises(UserError, match="a GGUF file is quantised already"):
        CausalLM(str(tiny_llama(tmp_path / "llama")), quantize="4bit", gguf_file="x.gguf")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--model.quantize 8bit needs bitsandbytes: pip install 'moe-adapt\[qu"
    ):
        SequenceClassifier(str(tiny_bert(tmp_path / "bert")), 2, quantize="8bit")
