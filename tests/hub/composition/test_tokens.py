"""Composed adapters that are routed token by token: Arrow; PHATGOOSE and Glider with gates per adapter."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.composition import add_adapter, compose, evaluate, remove_adapter
from moe_adapt.hub.composition.tokens import TokenRouter, _row
from moe_adapt.hub.gates import train_gate
from moe_adapt.routing.scorers.arrow import top_right_singular_vectors
from tests.hub.composition.kitchen import WORDS, batch, bert, llama, llama_adapters, save_lora, tokenizer

GATES = {"name": "phatgoose", "steps": 3}
GLIDER = {"name": "glider", "steps": 3}
TEXTS = [text for texts in WORDS.values() for text in texts]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return llama_adapters(tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="module")
def arrow(adapters, tmp_path_factory):
    to = tmp_path_factory.mktemp("composed") / "arrow"
    compose(adapters, None, to, base=llama(), router="arrow")
    return to


@pytest.fixture(scope="module")
def phatgoose(adapters, tmp_path_factory):
    to = tmp_path_factory.mktemp("composed") / "phatgoose"
    compose(adapters, WORDS, to, base=llama(), tokenizer=tokenizer(), router=GATES)
    return to


def glided(adapters, to, base=None, **options):
    compose(
        adapters, WORDS, to, base=base or llama(), tokenizer=tokenizer(), router=GLIDER | options, layer=1
    )
    return to


@pytest.fixture(scope="module")
def glider(adapters, tmp_path_factory):
    return glided(adapters, tmp_path_factory.mktemp("composed") / "glider")


def opened(folder):
    return peft.PeftModel.from_pretrained(llama(), str(folder)).eval()


def logits(model, **ids):
    with torch.inference_mode():
        return model(**batch(TEXTS), **ids).logits


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, other):
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_arrow_sends_a_token_where_an_expert_changes_most(arrow):
    model = opened(arrow)
    tuner = model.base_model
    inputs = {}
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "routers")}
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda m, args: inputs.__setitem__(m.site, args[0].flatten(0, -2)))
    with tuner.record():
        logits(model)
        records = tuner.hooks.session.context.records.values()
    assert len(records) == len(layers) > 0
    for record in records:
        layer = next(m for m in layers.values() if m.site == record.site)
        strength = inputs[record.site] @ top_right_singular_vectors(*layer.factors("default")).float().t()
        assert torch.equal(record.gates.argmax(dim=1), strength.abs().argmax(dim=1))
        assert torch.all(record.gates.sum(dim=1) == 1)


@pytest.mark.parametrize("kind", ["arrow", "phatgoose"])
def test_known_ids_win_in_a_forward_and_while_generating(kind, adapters, request):
    model = opened(request.getfixturevalue(kind))
    alone = peft.PeftModel.from_pretrained(llama(), adapters["bank"]).eval()
    inputs, real = batch(TEXTS), batch(TEXTS)["attention_mask"].bool()
    routed = logits(model, adapter_ids=["bank"] * len(TEXTS))
    torch.testing.assert_close(routed[real], logits(alone)[real], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(routed[real], logits(model)[real], atol=1e-3)
    for options in ({}, {"num_beams": 2}):
        told = model.generate(**inputs, max_new_tokens=4, adapter_ids=["bank"] * len(TEXTS), **options)
        assert torch.equal(told, alone.generate(**inputs, max_new_tokens=4, **options))


def test_gates_are_those_that_are_trained_for_each_adapter_alone(phatgoose, adapters):
    from moe_adapt.hub.composition.tokens import _batches

    def loss(model, part):
        return model(**part).loss

    own = train_gate(llama(), adapters["food"], _batches(tokenizer(), WORDS["food"], 512, 3, 0), loss)
    stored = tensors(phatgoose)
    config = json.loads((phatgoose / "adapter_config.json").read_text())
    assert own.keys() == {site for site, spec in config["sites"].items() if "food" in spec["uids"]}
    for site, gate in own.items():
        rows = stored[f"base_model.model.{site}.moe_adapt_router__scorer__weight"]
        assert gate.abs().max() > 0
        assert torch.equal(rows[config["sites"][site]["uids"].index("food")], gate)


def first_logits(model):
    with model.base_model.record():
        logits(model)
        record = next(iter(model.base_model.hooks.session.context.records.values()))
    return record.site, record.logits.view(len(TEXTS), -1, record.logits.shape[-1])


def test_glider_adds_the_cosine_of_the_prompt_to_the_gates(glider, phatgoose):
    model = opened(glider)
    site, found = first_logits(model)
    assert first_logits(opened(phatgoose))[0] == site
    routes = model.base_model.sample_routes()
    own = json.loads((glider / "adapter_config.json").read_text())["sites"][site]["uids"]
    cosines = routes.scores[:, [routes.uids.index(uid) for uid in own]]
    assert cosines.abs().max() <= 1.0001 and cosines.std() > 0
    torch.testing.assert_close(found - 3.0 * cosines[:, None], first_logits(opened(phatgoose))[1])


def test_glider_is_phatgoose_without_prompts_and_retrieval_with_nothing_else(adapters, phatgoose, tmp_path):
    gates = opened(glided(adapters, tmp_path / "gates", scale=0.0))
    torch.testing.assert_close(logits(gates), logits(opened(phatgoose)))
    prompts = opened(glided(adapters, tmp_path / "prompts", scale=1e6))
    with prompts.base_model.record():
        logits(prompts)
        records = prompts.base_model.hooks.session.context.records.values()
    routes, sites = prompts.base_model.sample_routes(), prompts.peft_config["default"].sites
    for record in records:
        own = [routes.uids.index(uid) for uid in sites[record.site]["uids"]]
        last = record.gates.view(len(TEXTS), -1, len(own))[:, -1]
        assert torch.equal(last.argmax(dim=1), routes.scores[:, own].argmax(dim=1))


def test_glider_keeps_the_prompts_cosine_while_it_generates(glider):
    model, inputs = opened(glider), batch(TEXTS)
    cached, anew = (
        model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, anew)


def test_known_ids_win_over_glider(glider, adapters):
    alone = peft.PeftModel.from_pretrained(llama(), adapters["news"]).eval()
    real = batch(TEXTS)["attention_mask"].bool()
    told = logits(opened(glider), adapter_ids=["news"] * len(TEXTS))
    torch.testing.assert_close(told[real], logits(alone)[real], atol=1e-4, rtol=1e-4)
    some = logits(opened(glider), adapter_ids=["news"] + [None] * (len(TEXTS) - 1))
    torch.testing.assert_close(some[1:][real[1:]], logits(opened(glider))[1:][real[1:]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("router", ["arrow", GATES, GLIDER], ids=["arrow", "phatgoose", "glider"])
def test_adding_is_exact_and_its_order_does_not_matter(router, adapters, tmp_path, request):
    whole = request.getfixturevalue(router if isinstance(router, str) else router["name"])
    gates, to = isinstance(router, dict), tmp_path / "grown"
    texts = {"news": WORDS["news"]} if gates else None
    compose(
        {"news": adapters["news"]}, texts, to, base=llama(), tokenizer=tokenizer(), router=router, layer=1
    )
    before = tensors(to)
    for uid in ("food", "bank"):
        own = WORDS[uid] if gates else []
        add_adapter(to, adapters[uid], own, uid=uid, base=llama(), tokenizer=tokenizer())
    assert same(to, whole)
    for uid in ("bank", "food"):
        remove_adapter(to, uid)
    after = tensors(to)
    assert all(torch.equal(after[name], before[name]) for name in before)
    config = json.loads((to / "adapter_config.json").read_text())
    assert config.pop("bank") == "lora" and "bank" not in json.dumps(config)


@pytest.mark.parametrize("router", ["arrow", "glider"])
def test_evaluation_says_who_answered_most(router, request):
    data = {uid: [{"prompt": t, "answer": ("yes", "no")[i % 2]} for i, t in enumerate(texts)]
            for uid, texts in WORDS.items()}  # fmt: skip
    found = evaluate(request.getfixturevalue(router), data, base=llama(), tokenizer=tokenizer(), merges=False)
    assert found.columns == ["bank", "food", "news", "base"] and {"oracle", "routed"} <= found.accuracy.keys()
    assert all(sum(row) == 2 * found.rows[uid] for uid, row in found.routing.items())  # two candidates each


def test_prompts_are_not_learned_where_there_is_a_response():
    tokens = tokenizer()
    ids, labels = _row(tokens, ("pay the bill", "transfer money"), 16)
    assert labels == [-100] * 3 + ids[3:] and len(ids) == 5
    assert _row(tokens, "pay the bill", 16)[0] == _row(tokens, "pay the bill", 16)[1]


def test_from_the_command_line(adapters, tmp_path, capsys):
    llama().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    base, to = f"--backbone={tmp_path / 'base'}", tmp_path / "all"
    pair = [f"{uid}={adapters[uid]}" for uid in ("bank", "news")]
    assert main(["compose", *pair, base, f"--to={to}", "--router=arrow"]) == 0
    assert "router arrow for every token and layer" in capsys.readouterr().out
    assert main(["compose", str(to), "--add", adapters["food"]]) == 0
    assert main(["compose", str(to), "--remove", "bank"]) == 0
    gate = {name: torch.ones(32) for name in _sites(adapters["bank"])}
    save_file(gate, tmp_path / "bank.safetensors")
    one = ["compose", f"bank={adapters['bank']}", base, f"--to={tmp_path / 'one'}", "--router=phatgoose"]
    assert main([*one, "--gates", f"bank={tmp_path / 'bank.safetensors'}"]) == 0
    rows = tensors(tmp_path / "one")
    assert all(torch.all(value == 1) for name, value in rows.items() if "router" in name)


def _sites(folder):
    names = load_file(f"{folder}/adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names}


def test_bad_input_is_one_sentence(adapters, tmp_path):
    def refused(said, sources=adapters, texts=WORDS, model=None, **options):
        with pytest.raises(UserError, match=said):
            base = llama() if model is None else model
            compose(sources, texts, tmp_path / "x", base=base, tokenizer=tokenizer(), **options)
        assert not (tmp_path / "x").exists()

    refused("no option 'stepps'.*steps", router={"name": "phatgoose", "stepps": 3})
    refused("at least 1", router={"name": "phatgoose", "steps": 0})
    refused("not negative", router={"name": "glider", "scale": -1.0})
    refused("needs texts", router="glider", texts={"bank": ["pay"]})
    refused("there are none", texts=None, router="phatgoose")
    refused("gates are for", router="lda", gates={"bank": {}})
    refused(
        "no gate for the layer", router="phatgoose", gates={uid: {"x": torch.ones(2)} for uid in adapters}
    )
    plain = save_lora(bert(head=False), tmp_path / "plain", 0, target_modules=["query"], task_type=None)
    refused("loss of a language model", {"a": plain}, {"a": ["hi"]}, bert(head=False), router=GATES)
    headed = save_lora(bert(), tmp_path / "headed", 0, target_modules=["query"], task_type="SEQ_CLS")
    refused("one decision per input", {"a": headed}, None, bert(), router="arrow")
    assert TokenRouter.of("lda") is None and TokenRouter.of(None) is None


def test_a_damaged_gate_is_refused(phatgoose, tmp_path):
    shutil.copytree(phatgoose, tmp_path / "bad")
    found = tensors(tmp_path / "bad")
    name = next(name for name in found if "router" in name)
    found[name] = found[name][:, :-1].clone()
    save_file(found, tmp_path / "bad" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(Exception, match=r"belong together|size mismatch|do not fit"):
        remove_adapter(tmp_path / "bad", "bank")
