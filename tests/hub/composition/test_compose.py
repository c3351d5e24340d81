"""Composed adapters: the right expert for each input, exact to add and remove."""

import shutil

import peft
import pytest
import torch

import moe_adapt.hub
from moe_adapt.hub.composition import add_adapter, compose, remove_adapter
from tests.hub.composition.kitchen import (
    WORDS,
    batch,
    bert,
    files,
    llama,
    llama_adapters,
    same,
    save_lora,
    tokenizer,
)

TEXTS = [text for texts in WORDS.values() for text in texts]
OWNERS = [uid for uid, texts in WORDS.items() for _ in texts]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return llama_adapters(tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="module")
def composed(adapters, tmp_path_factory):
    to = tmp_path_factory.mktemp("composed") / "all"
    compose(adapters, WORDS, to, base=llama(), tokenizer=tokenizer(), layer=1)
    return to


def opened(folder, dtype=torch.float32):
    return peft.PeftModel.from_pretrained(llama(dtype), str(folder)).eval()


def logits(model, texts=TEXTS, **ids):
    with torch.inference_mode():
        return model(**batch(list(texts)), **ids).logits


def test_public_name():
    assert moe_adapt.hub.compose is compose


def test_each_text_finds_its_adapter(composed):
    model = opened(composed)
    logits(model)
    assert model.base_model.sample_routes().names() == OWNERS


def test_the_report_says_where_examples_go_that_were_left_out(adapters, tmp_path):
    pair = {uid: adapters[uid] for uid in ("bank", "news")}
    words = {uid: WORDS[uid] for uid in pair} | {"news": [*WORDS["news"], WORDS["bank"][0]]}
    report = compose(pair, words, tmp_path / "pair", base=llama(), tokenizer=tokenizer(), layer=1)
    assert report.left_out["news"]["bank"] >= 1
    assert f"of {len(words['news'])} examples left out, " in str(report) and " to bank" in str(report)
    assert remove_adapter(tmp_path / "pair", "news").left_out == {}


def test_an_added_adapter_is_judged_by_its_examples_left_out(adapters, tmp_path):
    uids, loaded = ("bank", "news", "food"), {"base": llama(), "tokenizer": tokenizer()}
    words = {uid: WORDS[uid] for uid in uids}
    whole = compose({uid: adapters[uid] for uid in uids}, words, tmp_path / "whole", layer=1, **loaded)
    pair = {uid: adapters[uid] for uid in ("bank", "news")}
    compose(pair, {uid: words[uid] for uid in pair}, tmp_path / "grown", layer=1, **loaded)
    grown = add_adapter(tmp_path / "grown", adapters["food"], words["food"], uid="food", **loaded)
    assert grown.left_out == {"food": whole.left_out["food"]}
    assert "find their own expert" in str(whole) and "find their own expert" not in str(grown)
    assert "find their own expert" not in str(remove_adapter(tmp_path / "grown", "bank"))


def test_a_block_that_does_not_suit_a_new_adapter_is_told(adapters, tmp_path):
    loaded = {"base": llama(), "tokenizer": tokenizer()}
    pair = {uid: adapters[uid] for uid in ("bank", "news")}
    compose(pair, {uid: WORDS[uid] for uid in pair}, tmp_path / "pair", layer="auto", **loaded)
    report = add_adapter(tmp_path / "pair", adapters["food"], WORDS["bank"], uid="food", **loaded)
    assert "was chosen without 'food'; compose anew" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_what_its_adapter_alone_gives(composed, adapters, dtype):
    routed = logits(opened(composed, dtype), adapter_ids=OWNERS)
    for uid in adapters:
        rows = [i for i, owner in enumerate(OWNERS) if owner == uid]
        alone = peft.PeftModel.from_pretrained(llama(dtype), adapters[uid]).eval()
        expected = logits(alone)[rows]
        real = batch(TEXTS)["attention_mask"][rows].bool()
        close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.05}
        torch.testing.assert_close(routed[rows][real], expected[real], **close)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)], ids=str
)
def test_removal_leaves_others_bit_equal_and_its_own_rows_to_the_base(composed, tmp_path, dtype, autocast):
    whole = opened(composed, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before, base = logits(whole), None
        with whole.disable_adapter():
            base = logits(whole)
        shutil.copytree(composed, tmp_path / "less")
        remove_adapter(tmp_path / "less", "bank")
        less = opened(tmp_path / "less", dtype)
        after = logits(less)
    names = less.base_model.sample_routes().names()
    for row, owner in enumerate(OWNERS):
        if owner != "bank":
            assert names[row] == owner and torch.equal(before[row], after[row])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        unlearned = logits(less, adapter_ids=[None if o == "bank" else o for o in OWNERS])
    left = [row for row, name in enumerate(less.base_model.sample_routes().names()) if name is None]
    assert all(torch.equal(unlearned[row], base[row]) for row in left)
    for name in ("adapter_config.json", "compose.json", "README.md"):
        kept = (tmp_path / "less" / name).read_text().replace('"bank": "lora"', "")  # the kind of experts
        assert '"bank"' not in kept


def test_the_order_of_adding_does_not_matter(composed, adapters, tmp_path):
    for number, order in enumerate((("news", "food", "bank"), ("bank", "food", "news"))):
        to = tmp_path / str(number)
        first, *rest = order
        start = {first: adapters[first]}
        compose(start, {first: WORDS[first]}, to, base=llama(), tokenizer=tokenizer(), layer=1)
        for uid in rest:
            add_adapter(to, adapters[uid], WORDS[uid], uid=uid, base=llama(), tokenizer=tokenizer())
        assert same(files(to), files(composed))


def test_adding_and_removing_again_changes_nothing(composed, adapters, tmp_path):
    two = {uid: adapters[uid] for uid in ("bank", "news")}
    to = tmp_path / "two"
    compose(two, {uid: WORDS[uid] for uid in two}, to, base=llama(), tokenizer=tokenizer(), layer=1)
    before = files(to)
    add_adapter(to, adapters["food"], WORDS["food"], uid="food", base=llama(), tokenizer=tokenizer())
    assert same(files(to), files(composed))
    remove_adapter(to, "food")
    assert same(files(to), before)


def test_known_ids_win_over_the_router_and_names_are_checked(composed):
    model = opened(composed)
    swapped = ["food"] * 5 + [None] * 10
    logits(model, adapter_ids=swapped)
    assert model.base_model.sample_routes().names() == ["food"] * 5 + OWNERS[5:]
    logits(model, domain_ids=torch.tensor([2] * 15))
    assert model.base_model.sample_routes().names() == ["news"] * 15
    with pytest.raises(ValueError, match=r"no expert 'fod'. Did you mean 'food'"):
        logits(model, adapter_ids=["fod"] * 15)
    with pytest.raises(ValueError, match="ids of 2 samples for 15"):
        logits(model, adapter_ids=["food"] * 2)


def test_padding_decides_nothing(composed):
    model = opened(composed)
    logits(model)
    left = model.base_model.sample_routes().posterior.clone()
    with torch.inference_mode():
        model(**batch(TEXTS, side="right"))
    assert torch.allclose(model.base_model.sample_routes().posterior, left, atol=1e-4)
    for text, owner in zip(TEXTS, OWNERS, strict=True):
        logits(model, [text])
        assert model.base_model.sample_routes().names() == [owner]


def test_only_the_prompt_decides(composed):
    model = opened(composed)
    prompt, answer = batch(["pay the bill"]), batch(["serve it with rice"])
    ids = torch.cat([prompt["input_ids"], answer["input_ids"]], dim=1)
    labels = torch.cat([torch.full_like(prompt["input_ids"], -100), answer["input_ids"]], dim=1)
    with torch.inference_mode():
        model(**prompt)
        alone = model.base_model.sample_routes().posterior.clone()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        torch.testing.assert_close(model.base_model.sample_routes().posterior, alone, atol=1e-4, rtol=1e-4)
        mask = labels == -100
        model(input_ids=ids, attention_mask=torch.ones_like(ids), prompt_mask=mask)
    torch.testing.assert_close(model.base_model.sample_routes().posterior, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 5},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_generation_keeps_the_experts_of_the_prompt(composed, adapters, how):
    texts, owners = TEXTS[3:8], OWNERS[3:8]
    if "prompt_lookup_num_tokens" in how:
        texts, owners = texts[:1], owners[:1]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, **how}
    model = opened(composed)
    calls = []
    decide = model.base_model.hooks.samples.decide
    model.base_model.hooks.samples.decide = lambda *args: calls.append(1) or decide(*args)
    torch.manual_seed(0)
    with torch.inference_mode():
        found = model.generate(**batch(texts), **options)
    assert len(calls) == 1 and model.base_model.sample_routes().names() == owners
    known = opened(composed)
    torch.manual_seed(0)
    with torch.inference_mode():
        assert torch.equal(known.generate(**batch(texts), adapter_ids=owners, **options), found)
    if how.get("do_sample") or how.get("num_beams"):
        return
    for row, owner in enumerate(owners):
        alone = peft.PeftModel.from_pretrained(llama(), adapters[owner]).eval()
        with torch.inference_mode():
            expected = alone.generate(**batch(texts), **options)
        assert torch.equal(expected[row], found[row])


def test_adapters_that_name_no_task_become_one_that_generates(tmp_path):
    options = {"target_modules": ["q_proj"], "task_type": None}
    loras = {uid: save_lora(llama(), tmp_path / uid, n, **options) for n, uid in enumerate(("a", "b"))}
    compose(loras, None, tmp_path / "both", base=llama(), router=None)
    model = opened(tmp_path / "both")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
    found = model.generate(**batch(TEXTS[:2]), adapter_ids=["b", "a"], **options)
    for row, uid in enumerate(("b", "a")):
        alone = peft.PeftModel.from_pretrained(llama(), loras[uid]).eval()
        assert torch.equal(alone.generate(**batch(TEXTS[:2]), **options)[row], found[row])


def test_a_loop_of_ones_own_keeps_them_too(composed):
    model = opened(composed)
    tokens = batch(TEXTS[:4] + TEXTS[5:6])
    with torch.inference_mode():
        output = model(**tokens, use_cache=True)
        names = model.base_model.sample_routes().names()
        mask = torch.cat([tokens["attention_mask"], torch.ones(5, 1, dtype=torch.long)], dim=1)
        step = model(
            input_ids=output.logits[:, -1:].argmax(-1),
            attention_mask=mask,
            past_key_values=output.past_key_values,
        )
        ids = torch.cat([tokens["input_ids"], output.logits[:, -1:].argmax(-1)], dim=1)
        whole = model(input_ids=ids, attention_mask=mask, adapter_ids=names)
    torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1], atol=1e-4, rtol=1e-4)


def test_routing_inside_the_same_forward(tmp_path):
    upper = r".*layers\.[23]\.self_attn\.q_proj"
    loras = {
        uid: save_lora(llama(), tmp_path / uid, seed, target_modules=upper) for seed, uid in enumerate(WORDS)
    }
    compose(loras, WORDS, tmp_path / "all", base=llama(), tokenizer=tokenizer(), layer=2)
    model = opened(tmp_path / "all")
    assert model.base_model.hooks.samples.inline == {"default": True}
    inline = logits(model)
    names = model.base_model.sample_routes().names()
    assert names == OWNERS
    assert torch.equal(logits(model, adapter_ids=names), inline)


def test_soft_and_two_experts(adapters, tmp_path):
    for k in (0, 2):
        compose(
            adapters, WORDS, tmp_path / str(k), base=llama(), tokenizer=tokenizer(), layer=1, k=k, abstain=0
        )
        model = opened(tmp_path / str(k))
        soft = logits(model)
        routes = model.base_model.sample_routes()
        assert routes.index.shape == (15, k or 3)
        torch.testing.assert_close(routes.gates.sum(dim=1), torch.ones(15))
        assert torch.isfinite(soft).all()


def test_routing_is_recorded_and_mixed_batches_go_on(composed):
    model = opened(composed)
    with model.base_model.record():
        logits(model)
    stats = model.base_model.routing_stats()
    assert set(stats) == set(model.peft_config["default"].sites)
    whole = logits(model)
    with torch.inference_mode():
        mixed = model(**batch(TEXTS), adapter_names=["default"] * 10 + ["__base__"] * 5).logits
    torch.testing.assert_close(mixed[:10], whole[:10], atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(mixed[10:], logits(model)[10:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "router", [{"name": "prototype", "count": 5}, "trained", {"name": "lda", "shrinkage": 0.5}], ids=str
)
def test_other_routers(adapters, tmp_path, router):
    compose(adapters, WORDS, tmp_path / "all", base=llama(), tokenizer=tokenizer(), layer=1, router=router)
    model = opened(tmp_path / "all")
    logits(model)
    assert model.base_model.sample_routes().names() == OWNERS
    remove_adapter(tmp_path / "all", "food")
    logits(opened(tmp_path / "all"))


def test_without_a_router_ids_choose_and_the_base_answers(adapters, tmp_path):
    compose(adapters, None, tmp_path / "all", base=llama(), router=None)
    model = opened(tmp_path / "all")
    with model.disable_adapter():
        base = logits(model)
    assert torch.equal(logits(model), base)
    assert not torch.equal(logits(model, adapter_ids=OWNERS), base)


def test_foreign_texts_are_left_to_the_base(adapters, tmp_path):
    two = {uid: adapters[uid] for uid in ("bank", "news")}
    examples = {uid: WORDS[uid] * 4 for uid in two}
    compose(two, examples, tmp_path / "two", base=llama(), tokenizer=tokenizer(), layer=1, abstain=0.05)
    model = opened(tmp_path / "two")
    logits(model)
    abstained = model.base_model.sample_routes().abstained
    assert abstained[10:].float().mean() > abstained[:10].float().mean()


def test_classifiers_bring_their_own_heads(tmp_path):
    loras, options = {}, {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    for seed, (uid, classes) in enumerate({"bank": 2, "food": 4, "news": 3}.items()):
        base = bert()
        base.classifier = torch.nn.Linear(32, classes)
        loras[uid] = save_lora(base, tmp_path / uid, seed, **options)
    compose(loras, WORDS, tmp_path / "all", base=bert(), tokenizer=tokenizer(), layer=1)
    model = peft.PeftModel.from_pretrained(bert(), str(tmp_path / "all")).eval()
    with torch.inference_mode():
        found = model(**batch(TEXTS, side="right")).logits
    assert found.shape == (15, 9)
    names = model.base_model.sample_routes().names()
    starts = {"bank": (0, 2), "food": (2, 6), "news": (6, 9)}
    for row, uid in enumerate(names):
        base = bert()
        base.classifier = torch.nn.Linear(32, starts[uid][1] - starts[uid][0])
        alone = peft.PeftModel.from_pretrained(base, loras[uid]).eval()
        with torch.inference_mode():
            expected = alone(**batch(TEXTS, side="right")).logits[row]
        first, last = starts[uid]
        torch.testing.assert_close(found[row, first:last], expected, atol=1e-5, rtol=1e-4)
        assert first <= int(found[row].argmax()) < last
    remove_adapter(tmp_path / "all", "food")
    less = peft.PeftModel.from_pretrained(bert(), str(tmp_path / "all")).eval()
    with torch.inference_mode():
        assert less(**batch(TEXTS, side="right")).logits.shape == (15, 5)
