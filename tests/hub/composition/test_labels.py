"""Labels of examples: classes with means of their own, exact to add and remove as everything else."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file

from moe_adapt.hub.composition import add_adapter, compose, remove_adapter
from tests.hub.composition.kitchen import WORDS, batch, files, llama, llama_adapters, same, tokenizer


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return llama_adapters(tmp_path_factory.mktemp("loras"))


def labelled(texts):
    """Return texts, six times, with the labels of two classes."""
    return [(text, "one" if number < 2 else "two") for number, text in enumerate(texts)] * 6


def test_classes_of_labelled_examples_stand_beside_adapters_without(adapters, tmp_path):
    to, words = tmp_path / "all", WORDS | {"bank": labelled(WORDS["bank"])}
    words["food"] = [(text, text) for text in WORDS["food"]]
    report = compose(adapters, words, to, base=llama(), tokenizer=tokenizer())
    assert "bank (30 examples of 2 classes), food (5 examples, labels not used), news (5 examples)" in str(
        report
    )
    config = json.loads((to / "adapter_config.json").read_text())
    assert config["sample_router"]["shape"]["rows"] == 4 and config["sample_router"]["shape"]["experts"] == 3
    assert json.loads((to / "compose.json").read_text())["experts"]["bank"]["classes"] == 2
    assert "| bank | 30 examples of 2 classes |" in (to / "README.md").read_text()
    names = {name.rpartition("/")[2] for name in load_file(to / "router.safetensors") if "bank" in name}
    assert names == {"classes", "count", "mean", "factor", "tail"}
    model = peft.PeftModel.from_pretrained(llama(), str(to)).eval()
    with torch.inference_mode():
        model(**batch([text for texts in WORDS.values() for text in texts]))
    owners = [uid for uid, texts in WORDS.items() for _ in texts]
    assert model.base_model.sample_routes().names() == owners


def test_labelled_examples_are_added_and_removed_to_the_last_bit(adapters, tmp_path):
    words, paths = {uid: labelled(texts) for uid, texts in WORDS.items()}, []
    for number, order in enumerate((("bank", "news", "food"), ("food", "bank", "news"))):
        paths.append(tmp_path / str(number))
        first, *rest = order
        start = {first: adapters[first]}
        compose(start, {first: words[first]}, paths[-1], base=llama(), tokenizer=tokenizer(), layer=2)
        for uid in rest:
            add_adapter(paths[-1], adapters[uid], words[uid], uid=uid, base=llama(), tokenizer=tokenizer())
    assert same(*map(files, paths))
    remove_adapter(paths[0], "food")
    two = {uid: adapters[uid] for uid in ("bank", "news")}
    compose(two, {u: words[u] for u in two}, tmp_path / "two", base=llama(), tokenizer=tokenizer(), layer=2)
    assert same(files(paths[0]), files(tmp_path / "two"))


def test_a_folder_from_before_classes_is_added_to(adapters, tmp_path):
    to, composed = tmp_path / "old", tmp_path / "composed"
    compose(adapters, WORDS, composed, base=llama(), tokenizer=tokenizer(), layer=1)
    shutil.copytree(composed, to)
    version = lambda: json.loads((to / "compose.json").read_text())["format_version"]  # noqa: E731
    assert version() == 1 and not any("classes" in name for name in load_file(to / "router.safetensors"))
    add_adapter(
        to, adapters["bank"], labelled(WORDS["bank"]), uid="again", base=llama(), tokenizer=tokenizer()
    )
    assert version() == 2
    remove_adapter(to, "again")
    assert version() == 1 and same(files(to), files(composed))
