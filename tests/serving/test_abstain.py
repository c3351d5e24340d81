"""`predict --abstain`: shares of known rows, columns of answers, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from moe_adapt.serving.abstain import Abstaining
from moe_adapt.serving.opening import open_model
from tests.cli.conftest import moe_adapt as command  # noqa: F401  a fixture
from tests.serving.models import classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("abstain")
    classifier(root / "c")
    words = [
        f"{colour} {thing} {n}" for n in range(10) for colour in ("red", "blue") for thing in ("car", "cup")
    ]
    (root / "known.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    return root


def run(command, folder, rows, *words):  # noqa: F811
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    base = ["--base", folder / "bert", "--to", "out.jsonl", "--overwrite"]
    result = command("predict", folder / "c", "rows.jsonl", *base, *words)
    lines = Path("out.jsonl").read_text().splitlines() if result.code == 0 else []
    return result, [json.loads(line) for line in lines]


def test_known_rows_lose_about_their_share_and_the_others_keep_their_answers(command, folder):  # noqa: F811
    rows = [json.loads(line)["text"] for line in (folder / "known.jsonl").read_text().splitlines()]
    plain, before = run(command, folder, rows)
    told, after = run(command, folder, rows, "--abstain", 0.2, "--known", folder / "known.jsonl")
    assert plain.code == told.code == 0, told.err
    without = [row["abstained"] for row in after]
    assert 2 <= sum(without) <= 16
    kept = [
        (a["prediction"], b["prediction"]) for a, b in zip(after, before, strict=True) if not a["abstained"]
    ]
    assert all(one == two for one, two in kept)
    assert all(row["prediction"] is None for row in after if row["abstained"])
    cut = min(row["novelty"] for row in after if row["abstained"])
    assert all((row["novelty"] >= cut) == row["abstained"] for row in after)
    assert f"{sum(without)} rows without an answer" in told.err and "from 40 rows" in told.err


def test_equal_experts_do_not_disagree(folder):
    model = open_model(folder / "c", str(folder / "bert"))
    from moe_adapt.tuner.layer import adapted_layers

    told = Abstaining(model)
    _, _, doubt = told._signs([("red car 1",), ("blue cup",)])
    assert (doubt > 1e-6).all()
    for layer in adapted_layers(model.model.base_model.model):
        a, b = (factor.clone() for factor in layer.factors("default"))
        a[:], b[:] = a[:1].clone(), b[:, :1].clone()
        layer.set_experts("default", a, b, set())
    _, _, doubt = told._signs([("red car 1",), ("blue cup",)])
    torch.testing.assert_close(doubt, torch.zeros(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--abstain", 0.1], "needs rows that the model knows"),
        (["--known", "x"], "--known is for --abstain"),
        (["--abstain", 0.1, "--workers", 1], "does not go with --workers"),
        (["--abstain", 0.1, "--known", "rows.jsonl"], "20 rows or more, got 1"),
    ],
)
def test_mistakes_are_one_line(command, folder, words, expected):  # noqa: F811
    result, _ = run(command, folder, ["red"], *words)
    assert result.code == 2 and expected in result.err
