"""Pools over a middle block of the base: any router over samples, sets, foreign texts, evaluation, gates."""

import json

import pytest
import torch

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.pool import AdapterPool, Plan, StatisticsRouter
from moe_adapt.hub.pool.evaluate import evaluate_pool
from tests.hub.composition.kitchen import WORDS, llama, llama_adapters, tokenizer


def examples(direction, count=12, seed=0, width=6):
    generator = torch.Generator().manual_seed(seed + direction)
    return torch.randn(count, width, generator=generator) * 0.1 + torch.eye(width)[direction]


@pytest.mark.parametrize("router", ["lda", "prototype", "trained"])
def test_any_router_finds_the_adapter_and_is_kept(router, tmp_path):
    pool = AdapterPool("base", router=router, block=2)
    for direction, uid in enumerate("abc"):
        pool.add(uid, f"me/{uid}", examples(direction))
    plan = pool.route(torch.cat([examples(direction, 3, seed=9) for direction in range(3)]))
    assert [best[0][0] for best in plan.best()] == [*"aaabbbccc"]
    pool.save(tmp_path / "pool")
    again = AdapterPool.load(tmp_path / "pool")
    assert again.block == 2 and torch.equal(again.route(examples(1)).scores, pool.route(examples(1)).scores)
    again.remove("b")
    assert again.route(examples(0)).uids == ["a", "c"]
    with pytest.raises(UserError, match="6 dimensions, these have 5"):
        pool.route(torch.ones(1, 5))
    with pytest.raises(UserError, match="already"):
        pool.add("a", "me/a", examples(0))


def test_the_order_of_adding_does_not_matter():
    one, other = StatisticsRouter(), StatisticsRouter()
    for direction in (0, 1, 2):
        one.add(f"a{direction}", examples(direction))
        other.add(f"a{2 - direction}", examples(2 - direction))
    assert torch.equal(one.route(examples(1)).scores, other.route(examples(1)).scores)


def test_sets_by_margin_a_least_score_and_foreign_queries():
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.9, 0.1, 0.0]])
    plan = Plan(["a", "b", "c"], scores, torch.tensor([False, False, True]))
    names = [[uid for uid, _ in row] for row in plan.suiting()]
    assert names == [["a"], ["a"], []]
    assert [[uid for uid, _ in row] for row in plan.suiting(3, margin=0.1)] == [["a"], ["a", "b"], []]
    assert [len(row) for row in plan.suiting(2, margin=0.2)] == [1, 2, 0]
    assert [len(row) for row in plan.suiting(least=0.5)] == [1, 0, 0]


def test_evaluation_counts_and_leaves_foreign_texts_to_the_base():
    pool = AdapterPool("base", router="lda", block=1)
    for direction, uid in enumerate("ab"):
        pool.add(uid, f"me/{uid}", examples(direction, 40))
    vectors = {"in a": examples(0, 10, seed=5), "in b": examples(1, 10, seed=5), "far": 50 * examples(4, 10)}

    def embed(texts):
        return vectors[texts[0]]

    found = evaluate_pool(pool, {"a": ["in a"] * 10, "b": ["in b"] * 10}, embed, ["far"] * 10)
    assert found.columns == ["a", "b", "base"] and found.foreign == 1.0
    assert all(sum(row) == 10 for row in found.routed.values()) and found.routed["a"][1] == 0
    assert found.accuracy >= 0.8 and "find their own adapter" in str(found)
    with pytest.raises(UserError, match="no adapter 'c'"):
        evaluate_pool(pool, {"c": ["in a"]}, embed)
    with pytest.raises(UserError, match="at least one adapter"):
        evaluate_pool(pool, {}, embed)


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("base")
    tokenizer().save_pretrained("base")
    llama_adapters(tmp_path)
    for uid, texts in WORDS.items():
        (tmp_path / f"{uid}.txt").write_text("\n".join(texts))
    base = ["--backbone", "base", "--layer", "1"]
    for uid in WORDS:
        assert main(["pool", "add", "pool", uid, "--examples", f"{uid}.txt", *base]) == 0
        base = []
    capsys.readouterr()
    assert main(["pool", "route", "pool", "pay the bill", "bake the bread"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["adapters"][0]["adapter"] for row in rows] == ["bank", "food"]
    assert main(["pool", "route", "pool", "pay the bill", "--least", "1.1"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == []
    data = [f"{uid}={uid}.txt" for uid in WORDS]
    assert main(["pool", "evaluate", "pool", "--data", *data, "--to", "report.json"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["accuracy"] == 1.0
    assert main(["pool", "gate", "pool", "bank", "--examples", "bank.txt", "--steps", "2"]) == 0
    assert AdapterPool.load("pool").members["bank"].gates
    assert main(["pool", "list", "pool"]) == 0
    for words, said in (
        (["gate", "pool", "bnk", "--examples", "bank.txt"], "no adapter 'bnk'"),
        (["evaluate", "pool", "--data", "bank.txt"], "takes UID=FILE"),
        (["add", "pool", "/no/such/adapter", "--examples", "bank.txt"], "there is no adapter"),
        (["add", "new", "bank", "--examples", "bank.txt"], "or --backbone, the base model"),
        (["route", "pool", "x", "--margin", "-1"], "--margin at least 0"),
    ):
        capsys.readouterr()
        assert main(["pool", *words]) == 2
        assert said in capsys.readouterr().err
