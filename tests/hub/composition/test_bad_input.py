"""What cannot be composed ends in one sentence, and leaves nothing half written."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_adapt.errors import UserError
from moe_adapt.hub.composition import add_adapter, compose, evaluate, remove_adapter
from tests.hub.composition.kitchen import WORDS, batch, bert, llama, llama_adapters, save_lora, tokenizer


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return llama_adapters(tmp_path_factory.mktemp("loras"))


def built(adapters, to, examples=WORDS, **options):
    return compose(
        adapters, examples, to, **{"base": llama(), "tokenizer": tokenizer(), "layer": 1, **options}
    )


def changed(source, to, **values):
    shutil.copytree(source, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(to)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"peft_type": "ROUTED_LORA"}, "type 'ROUTED_LORA'; only plain LoRA"),
        ({"base_model_name_or_path": "somebody/else"}, "different base models"),
        ({"task_type": "SEQ_CLS"}, "different kinds of task"),
        ({"bias": "all"}, "bias='all'"),
    ],
)
def test_adapters_that_do_not_go(adapters, tmp_path, values, message):
    own = {**adapters, "news": changed(adapters["news"], tmp_path / "odd", **values)}
    if "base_model_name_or_path" in values:
        own["bank"] = changed(adapters["bank"], tmp_path / "b", base_model_name_or_path="some/base")
    with pytest.raises(UserError, match=message):
        built(own, tmp_path / "all")
    assert not (tmp_path / "all").exists() and not list(tmp_path.glob(".all*"))


def test_names_examples_and_layers(adapters, tmp_path):
    to = tmp_path / "all"
    for wrong, message in [
        (lambda: built([*adapters.values(), adapters["bank"]], to), "called 'bank'"),
        (lambda: built({}, to), "no adapter to compose"),
        (lambda: built({"a/b": adapters["bank"]}, to), "no slash"),
        (lambda: built(adapters, to, None), "none of bank, food, news"),
        (lambda: built(adapters, to, {**WORDS, "food": []}), "none of food"),
        (lambda: built(adapters, to, {**WORDS, "fod": ["x"]}), "Did you mean 'food'"),
        (lambda: built(adapters, to, {**WORDS, "food": ["", "x"]}), "empty text"),
        (lambda: built(adapters, to, layer=9), "blocks 1 to 4"),
        (lambda: built(adapters, to, layer="first"), "number of blocks"),
        (lambda: built(adapters, to, router="ldaa"), "Did you mean 'lda'"),
        (lambda: built(adapters, to, k=-1), "k is at least 0"),
        (lambda: built(adapters, to, backbone="x"), "and not both"),
        (lambda: built({**adapters, "x": "/no/such"}, to), "has no adapter_config.json"),
        (lambda: built(adapters, to, base=bert(head=False)), "no linear layer of this base"),
    ]:
        with pytest.raises(UserError, match=message):
            wrong()
    assert not to.exists()


def test_one_example_and_one_adapter_will_do(adapters, tmp_path):
    built(adapters, tmp_path / "all", {uid: texts[:1] for uid, texts in WORDS.items()}, layer="auto")
    report = built({"bank": adapters["bank"]}, tmp_path / "one", {"bank": WORDS["bank"]}, layer="auto")
    assert report.record.block == 2, "the middle, where nothing tells the blocks apart"
    with pytest.raises(UserError, match="only expert"):
        remove_adapter(tmp_path / "one", "bank")


def test_editing_what_is_not_there(adapters, tmp_path):
    built(adapters, tmp_path / "all")
    before = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    more = {"base": llama(), "tokenizer": tokenizer()}
    for wrong, message in [
        (lambda: remove_adapter(tmp_path / "all", "bnk"), "Did you mean 'bank'"),
        (lambda: remove_adapter(adapters["bank"], "bank"), "no composed adapter"),
        (lambda: add_adapter(tmp_path / "all", adapters["bank"], ["x"], **more), "already"),
        (lambda: add_adapter(tmp_path / "all", adapters["bank"], [], uid="new", **more), "at least one"),
        (lambda: add_adapter(tmp_path / "all", adapters["bank"], ["x"], uid="new"), "give the backbone"),
        (lambda: evaluate(tmp_path / "all", {"bnk": "x.jsonl"}, base=llama()), "Did you mean 'bank'"),
    ]:
        with pytest.raises(UserError, match=message):
            wrong()
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == before


def test_damaged_folders(adapters, tmp_path):
    built(adapters, tmp_path / "all")
    router = tmp_path / "all" / "router.safetensors"
    whole = router.read_bytes()
    router.write_bytes(whole[:40])
    with pytest.raises(UserError, match="damaged"):
        remove_adapter(tmp_path / "all", "bank")
    router.write_bytes(whole)
    weights = load_file(tmp_path / "all" / "adapter_model.safetensors")
    name = next(key for key in weights if "rule__weight" in key)
    save_file({**weights, name: torch.zeros(2, 3)}, tmp_path / "all" / "adapter_model.safetensors")
    from moe_adapt.hub.load import check_adapter_folder

    with pytest.raises(UserError, match="sample router does not fit"):
        check_adapter_folder(tmp_path / "all")


def test_heads_are_all_or_none(tmp_path):
    with_head = save_lora(bert(), tmp_path / "a", 0, target_modules=["query"], task_type="SEQ_CLS")
    without = save_lora(bert(), tmp_path / "b", 1, target_modules=["query"], task_type=None)
    with pytest.raises(UserError, match="one trained head at the same place"):
        compose(
            {"a": with_head, "b": without},
            {"a": ["x"], "b": ["y"]},
            tmp_path / "all",
            base=bert(),
            tokenizer=tokenizer(),
        )


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
@pytest.mark.parametrize("whole", ["lm_head", "embed_tokens", "norm"])
def test_modules_trained_whole_are_no_heads_of_classes(tmp_path, whole, task):
    """Stacked as heads they would make a vocabulary as large as those of all adapters together."""
    source = save_lora(llama(), tmp_path / "a", 0, modules_to_save=[whole], task_type=task)
    with pytest.raises(UserError, match=f"{whole}|layernorm") as refusal:
        compose({"a": source}, None, tmp_path / "all", base=llama(), router=None)
    assert "no classification head" in str(refusal.value) or "no LoRA factor" in str(refusal.value)
    assert not (tmp_path / "all").exists()


def test_embeddings_saved_beside_an_adapter_are_dropped_if_they_are_the_bases(tmp_path):
    source = save_lora(llama(), tmp_path / "a", 0, target_modules=["q_proj", "lm_head"])
    base = llama()
    compose({"a": source}, None, tmp_path / "all", base=base, router=None)
    composed = peft.PeftModel.from_pretrained(base, str(tmp_path / "all")).eval()
    plain = peft.PeftModel.from_pretrained(llama(), source).eval()
    inputs = batch(WORDS["bank"])
    found = composed(**inputs, adapter_ids=["a"] * len(WORDS["bank"])).logits
    torch.testing.assert_close(found, plain(**inputs).logits, rtol=1e-4, atol=1e-5)
