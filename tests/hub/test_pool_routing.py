"""Pools over a middle block of the base: any router over samples, sets, foreign texts, evaluation, gates."""

import json

import pytest
import torch

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.pool import AdapterPool, Plan, StatisticsRouter, budget
from moe_adapt.hub.pool.budget import solve, values_of
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


def test_classes_of_an_adapter_are_kept(tmp_path):
    pool = AdapterPool("base", router="lda", block=1)
    pool.add("a", "me/a", torch.cat([examples(0), examples(1)]), labels=["x"] * 12 + ["y"] * 12)
    pool.add("b", "me/b", examples(2))
    pool.save(tmp_path / "pool")
    assert json.loads((tmp_path / "pool" / "pool.json").read_text())["format_version"] == 3
    again = AdapterPool.load(tmp_path / "pool")
    x = torch.cat([examples(direction, 3, seed=9) for direction in range(3)])
    assert torch.equal(again.route(x).scores, pool.route(x).scores)
    assert [best[0][0] for best in again.route(x).best()] == [*"aaaaaabbb"]
    assert values_of(again.router)[1].shape == (2, 2)
    again.remove("a")
    again.save(tmp_path / "pool")
    assert json.loads((tmp_path / "pool" / "pool.json").read_text())["format_version"] == 2


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


def test_a_budget_keeps_the_best_set_and_sends_the_others_to_it():
    values = torch.tensor([[1.0, 0.9, 0.1], [0.8, 1.0, 0.2], [0.1, 0.3, 1.0]])
    table = solve(["a", "b", "c"], values, [1.0, 1.0, 2.0], budget=3)
    assert table.kept == ["b", "c"] and table.answers == {"a": "b", "b": "b", "c": "c"}
    assert table.value == pytest.approx(2.9 / 3) and table.best == pytest.approx(1.0)
    assert table.savings == pytest.approx(0.25)
    often = solve(["a", "b", "c"], values, [1.0, 1.0, 2.0], budget=1, weights=[9, 1, 1])
    assert often.kept == ["a"] and set(often.answers.values()) == {"a"}
    everything = solve(["a", "b", "c"], values, [1.0, 1.0, 2.0], budget=4)
    assert everything.kept == ["a", "b", "c"] and everything.savings == 0
    with pytest.raises(UserError, match="no adapter fits"):
        solve(["a"], values[:1, :1], [2.0], budget=1)


@pytest.mark.parametrize("seed", range(5))
def test_many_adapters_are_chosen_nearly_as_well_as_by_all_sets(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(9, 9, generator=generator) + 2 * torch.eye(9)
    sizes = (1 + torch.rand(9, generator=generator)).tolist()
    names = list("abcdefghi")
    best = solve(names, values, sizes, budget=5)
    monkeypatch.setattr(budget, "EXACT", 0)
    greedy = solve(names, values, sizes, budget=5)
    assert best.value * 0.63 <= greedy.value <= best.value + 1e-9
    assert sum(sizes[names.index(uid)] for uid in greedy.kept) <= 5


@pytest.mark.parametrize("router", ["lda", "prototype", "trained"])
def test_a_table_follows_from_what_the_pool_keeps(router):
    pool = AdapterPool("base", router=router, block=2)
    near = examples(1) + 0.8 * torch.eye(6)[0]
    for uid, own in (("a", examples(0)), ("like a", near), ("c", examples(3))):
        pool.add(uid, f"me/{uid}", own)
    uids, values = values_of(pool.router)
    assert values.argmax(dim=1).tolist() == [0, 1, 2] or uids != ["a", "like a", "c"]
    assert values[uids.index("a"), uids.index("like a")] > values[uids.index("a"), uids.index("c")]


def test_the_command_of_a_budget(tmp_path, capsys):
    pool = AdapterPool("base", router="lda", block=2)
    for direction, uid in enumerate("abc"):
        pool.add(uid, f"me/{uid}", examples(direction))
    pool.save(tmp_path / "pool")
    words = ["pool", "budget", str(tmp_path / "pool"), "--megabytes", "2"]
    assert main(words) == 2 and "--size a=MB" in capsys.readouterr().err
    assert main([*words, "--size", "a=1", "b=1", "d=1"]) == 2 and "no adapter 'd'" in capsys.readouterr().err
    assert main([*words, "--size", "a=1", "b=x"]) == 2 and "UID=MB" in capsys.readouterr().err
    assert main([*words, "--size", "a=1", "b=1", "c=5"]) in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["kept"] for line in lines[:-1]] == [True, True, False]
    assert "2 of 3 adapters kept" in lines[-1] and "savings 71.4%" in lines[-1]
