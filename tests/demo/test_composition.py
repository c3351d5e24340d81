"""The demo of composition: fair tasks, exact removal, honest counts, and (slow) the whole of it."""

import json

import pytest
import torch

from moe_adapt.demo.__main__ import compare_options, compose_options, main, reserve
from moe_adapt.demo.desks import CODES, DESKS, draw_desks, load_stories, read_stories
from moe_adapt.demo.removal import Readings, accuracy_by_desk, judge_removal
from moe_adapt.errors import UserError
from tests.demo.test_demo import needs_packages

STORIES = [(t, tuple(f"{part} {t} {i}" for part in "hobc")) for t in "vwxyz" for i in range(12)]


def readings(routes, values, base=0.0):
    outputs = [torch.full((2, 3), value) for value in values]
    return Readings(outputs, [torch.full((2, 3), base)] * len(values), routes, {})


def test_no_article_serves_twice_and_every_desk_reads_its_part():
    desks = draw_desks(STORIES, 2, 1, 1, seed=3)
    assert list(desks) == list(DESKS)
    seen = []
    for name, letter in zip(DESKS, "hoc", strict=True):
        rows = [*desks[name].train, *desks[name].validation, *desks[name].test]
        assert len(rows) == 20 and {row["text"][0] for row in rows} == {letter}
        seen += [row["text"][2:] for row in rows]
    assert len(set(seen)) == len(seen)


def test_desks_agree_on_no_word():
    desks = draw_desks(STORIES, 2, 1, 1, seed=0)
    for topic in "vwxyz":
        assert len({desk.meaning[topic] for desk in desks.values()}) == len(DESKS)
    for desk in desks.values():
        assert sorted(desk.meaning.values()) == sorted(CODES)
        for row in desk.test:
            assert row["label"] == desk.meaning[row["text"].split()[1]]


def test_the_draw_depends_on_the_seed_only():
    assert draw_desks(STORIES, 2, 1, 1, seed=1) == draw_desks(STORIES, 2, 1, 1, seed=1)
    assert draw_desks(STORIES, 2, 1, 1, seed=1) != draw_desks(STORIES, 2, 1, 1, seed=2)


def test_too_few_articles_are_named():
    with pytest.raises(UserError, match="'v' has 12 articles, 15 are needed"):
        draw_desks(STORIES, 3, 1, 1, seed=0)
    with pytest.raises(UserError, match="4 topics"):
        draw_desks([story for story in STORIES if story[0] != "z"], 1, 1, 1, seed=0)


def test_short_and_repeated_articles_are_left_out(tmp_path):
    (tmp_path / "tech").mkdir()
    texts = ["A\n\nb \xa3\n\nc\n\nd", "Other\n\nx\n\ny\n\nD", "Short\n\nx\n\ny", "New\n\nq\n\nr\n\ns"]
    for number, text in enumerate(texts):
        (tmp_path / "tech" / f"{number}.txt").write_bytes(text.encode("latin-1"))
    assert read_stories(tmp_path) == [("tech", ("A", "b \xa3", "c", "d")), ("tech", ("New", "q", "r", "s"))]


def test_a_removal_is_counted():
    owners = ["a", "a", "a", "b", "b"]
    before = readings(["a", "a", "b", "b", "a"], [1.0, 1.0, 2.0, 2.0, 1.0])
    after = readings([None, "b", "b", "b", None], [0.0, 2.0, 2.0, 2.0, 0.0])
    found = judge_removal(before, after, owners, "a")
    assert (found.own_rows, found.to_base, found.to_others) == (2, 1, 1)
    assert (found.kept_rows, found.moved_rows) == (1, 1)


def test_a_row_that_changes_on_its_route_is_an_error():
    before, after = readings(["b"], [2.0]), readings(["b"], [2.0000002])
    with pytest.raises(UserError, match="goes to b as before, but differs"):
        judge_removal(before, after, ["b"], "a")


def test_a_row_that_is_not_the_base_is_an_error():
    with pytest.raises(UserError, match="differs from it"):
        judge_removal(readings(["a"], [1.0]), readings([None], [0.5]), ["a"], "a")


def test_accuracy_by_desk():
    words = {"amber": torch.tensor([1.0, 0.0]), "birch": torch.tensor([0.0, 1.0])}
    outputs = [torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0]])]
    assert accuracy_by_desk(outputs, ["a", "b"], ["amber", "amber"], words) == {"a": 1.0, "b": 0.0}


def test_options():
    assert compose_options(["--seed", "4"]).seed == 4
    assert vars(compare_options(["--compare"])).items() >= {"seeds": 3, "per_class": 8, "epochs": 8}.items()
    with pytest.raises(UserError, match="unknown option --seeds"):
        compose_options(["--seeds", "3"])
    with pytest.raises(UserError, match="--epochs must be at least 1"):
        main(["--epochs", "0"])
    with pytest.raises(UserError, match="--seeds must be at least 1"):
        main(["--compare", "--seeds", "0"])


def test_an_earlier_composition_is_replaced(tmp_path):
    for name in ("data", "adapters", "composed", "composed-without-headlines"):
        (tmp_path / name).mkdir()
    (tmp_path / "report.md").write_text("old")
    reserve(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_packages
def test_the_articles_are_enough():
    stories = load_stories()
    assert len(draw_desks(stories, 30, 5, 16, seed=0)["openings"].test) == 80


@needs_packages
@pytest.mark.slow
def test_the_whole_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "demo"
    main(["--out", str(out), "--per-class", "6", "--test-per-class", "4", "--epochs", "1"])
    results = json.loads((out / "results.json").read_text())
    assert results["reload_difference"] == 0
    assert {"oracle", "routed", "base", "best single", "merge cat"} <= set(results["evaluation"]["accuracy"])
    removal = results["removal"]
    assert removal["kept_rows"] + removal["moved_rows"] == 40
    assert removal["to_base"] + removal["to_others"] == removal["own_rows"] <= 20
    assert (out / "composed" / "adapter_model.safetensors").exists()
    assert "Three adapters" in (out / "report.md").read_text()
