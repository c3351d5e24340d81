"""Pools of adapters: append-only scores, saving, gates, and the command."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.pool import AdapterPool, PrototypeRouter
from moe_adapt.hub.pool.gates import gated_model, sample_scores, train_gate
from moe_adapt.hub.pool.router import centroids
from moe_adapt.tuner.model import adapted_layers
from tests.hub.tiny import IDS, build_base, logits
from tests.training.tiny import tiny_bert


def examples(seed, direction, count=6, width=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * 0.2 + torch.eye(width)[direction]


@given(st.integers(0, 50), st.integers(1, 3))
def test_an_adapter_more_changes_no_other_score(seed, count):
    router = PrototypeRouter(count)
    for direction in range(3):
        router.add(f"a{direction}", examples(seed + direction, direction))
    queries = examples(seed + 9, 1, count=5)
    before = router.route(queries)
    router.add("new", examples(seed + 20, 4))
    after = router.route(queries)
    assert torch.equal(after.scores[:, :3], before.scores)
    router.remove("a0")
    assert torch.equal(router.route(queries).scores, after.scores[:, 1:])
    assert all(best[0][0] == "a1" for best in router.route(queries).best())


def test_centroids_of_two_clusters():
    rows = torch.cat([examples(0, 0), examples(1, 3)])
    found = centroids(rows, 2)
    assert set(found.argmax(dim=1).tolist()) == {0, 3}
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert len(centroids(rows[:1], 4)) == 1


def test_what_a_pool_refuses(tmp_path):
    pool = AdapterPool("encoder")
    with pytest.raises(UserError, match="pool is empty"):
        pool.route(torch.ones(1, 8))
    pool.add("one", "here", examples(0, 0))
    with pytest.raises(UserError, match="already"):
        pool.add("one", "there", examples(0, 0))
    with pytest.raises(UserError, match="at least one"):
        pool.add("two", "there", torch.ones(0, 8))
    with pytest.raises(UserError, match="8 dimensions, these have 5"):
        pool.route(torch.ones(1, 5))
    with pytest.raises(UserError, match="Did you mean 'one'"):
        pool.remove("ones")
    with pytest.raises(UserError, match="no slash"):
        pool.add("a/b", "there", examples(0, 0))
    with pytest.raises(UserError, match="is no pool"):
        AdapterPool.load(tmp_path)
    pool.save(tmp_path / "pool")
    (tmp_path / "pool" / "pool.safetensors").write_bytes(b"xx")
    with pytest.raises(UserError, match="is damaged"):
        AdapterPool.load(tmp_path / "pool")


def test_a_saved_pool_routes_alike(tmp_path):
    pool = AdapterPool("encoder", centroids=2)
    pool.add("one", "here", examples(0, 0), note="numbers", gates={"a.b": torch.arange(3.0)})
    pool.add("two", "me/two@abc", examples(1, 3))
    pool.save(tmp_path / "pool")
    loaded = AdapterPool.load(tmp_path / "pool")
    queries = examples(5, 2)
    assert torch.equal(loaded.route(queries).scores, pool.route(queries).scores)
    assert loaded.members["one"].note == "numbers"
    assert torch.equal(loaded.members["one"].gates["a.b"], torch.arange(3.0))
    loaded.remove("one")
    loaded.save(tmp_path / "pool")
    assert list(AdapterPool.load(tmp_path / "pool").members) == ["two"]


def stock_lora(folder, seed):
    model = get_peft_model(build_base(), LoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=generator)
    model.save_pretrained(folder)
    return str(folder)


def loss_of(model, batch):
    return model(input_ids=batch, labels=batch).loss


def test_gates_train_alone_and_leave_the_base_as_it_was(tmp_path):
    base = build_base()
    before, modules = logits(base), [type(module) for module in base.modules()]
    source = stock_lora(tmp_path / "one", seed=1)
    gates = train_gate(base, source, [IDS] * 4, loss_of)
    assert torch.equal(logits(base), before)
    assert [type(module) for module in base.modules()] == modules
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert len(gates) == 4
    assert all(gate.abs().sum() > 0 for gate in gates.values())
    with pytest.raises(UserError, match="there are none"):
        train_gate(base, source, [], loss_of)


def first_record(pool, scale=0.0):
    """What the routers of the first adapted layer decide: it sees the same tokens whatever the pool."""
    model = gated_model(build_base(), pool, scale=scale)
    scores = pool.route(examples(9, 1, count=len(IDS))).scores
    with sample_scores(model, scores), model.base_model.record(), torch.inference_mode():
        model(input_ids=IDS)
    site = next(layer.site for layer in adapted_layers(model))
    records = model.base_model.hooks.session.context.records
    return next(record for key, record in records.items() if key[1] == site), scores


def test_an_adapter_more_changes_no_other_token_logit(tmp_path):
    pool, recorded = AdapterPool("encoder"), []
    for seed, uid in enumerate(("one", "two", "three")):
        source = stock_lora(tmp_path / uid, seed)
        gates = train_gate(build_base(), source, [IDS] * 2, loss_of)
        pool.add(uid, source, examples(seed, seed), gates=gates)
        if uid == "one":
            continue
        recorded.append([first_record(pool, scale)[0].logits for scale in (0.0, 3.0)])
    for two, three in zip(*recorded, strict=True):
        assert (two.shape[1], three.shape[1]) == (2, 3)
        assert torch.equal(three[:, :2], two)
    (gates_alone, with_scores), (record, scores) = recorded[1], first_record(pool, 1e4)
    expected = scores.repeat_interleave(IDS.shape[1], dim=0)
    torch.testing.assert_close(with_scores, gates_alone + 3.0 * expected)
    best = record.logits.argmax(dim=1)
    assert torch.equal(best, expected.argmax(dim=1)), "with a large factor it is retrieval"
    with pytest.raises(UserError, match="needs a score"):
        gated_model(build_base(), pool, scale=1.0)(input_ids=IDS)
    pool.members["two"].gates.clear()
    with pytest.raises(UserError, match="no gates: two"):
        gated_model(build_base(), pool)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_bert(tmp_path / "encoder")
    (tmp_path / "sums.txt").write_text("1+1=2\n3+4=7\n\n2+2=4\n")
    (tmp_path / "words.jsonl").write_text('{"text": "the cat sat"}\n{"text": "a dog ran"}\n')
    assert main(["pool", "add", "pool", "me/sums", "--examples", "sums.txt"]) == 2
    assert "needs --encoder" in capsys.readouterr().err
    words = ["--examples", "sums.txt", "--encoder", "encoder", "--note", "adding up"]
    assert main(["pool", "add", "pool", "me/sums@v1", *words]) == 0
    assert main(["pool", "add", "pool", "adapters/words", "--examples", "words.jsonl"]) == 0
    assert "words: 2 examples; the pool has 2 adapters" in capsys.readouterr().out
    assert main(["pool", "route", "pool", "5+5=10", "--file", "words.jsonl", "--top", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["adapters"][0]["adapter"] for row in rows] == ["sums", "words", "words"]
    assert rows[0]["adapters"][0]["source"] == "me/sums@v1"
    assert main(["pool", "list", "pool"]) == 0
    assert "adding up" in capsys.readouterr().out
    assert main(["pool", "remove", "pool", "sums"]) == 0
    assert main(["pool", "remove", "pool", "sums"]) == 2
    assert main(["pool", "rout", "pool"]) == 2
    assert "Did you mean 'route'" in capsys.readouterr().err
    assert main(["pool", "add", "pool", "x/y", "--examples", "missing.txt"]) == 2
