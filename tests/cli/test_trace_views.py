"""What `moe-adapt trace` prints: contrast, shift under changes of texts, other precisions of the base."""

import json
from pathlib import Path

import pytest
import torch

from moe_adapt.evaluation.trace.precision import normal_float_levels, round_weight
from moe_adapt.runs.rebuild import load_data, load_module
from moe_adapt.serving.opening import open_model
from moe_adapt.serving.robustness import text_shifts
from moe_adapt.training.precision import base_layers, compare_precisions
from moe_adapt.training.tracing import split_batches
from tests.hub.conftest import run  # noqa: F401  a fixture

ROWS = [{"text": f"hello number {n}", "label": "hello"} for n in range(6)]


def test_precisions_of_a_run(moe_adapt, run):  # noqa: F811
    module = load_module(run)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batches = list(split_batches(load_data(run), "train"))
    found = compare_precisions(module, batches, ["fp32", "bf16", "nf4"])
    assert found["fp32"].first == found["fp32"].same_set == found["fp32"].answers == 1.0
    assert found["fp32"].routing_js == found["fp32"].answer_kl == 0.0
    assert found["nf4"].answer_kl > found["bf16"].answer_kl > 0
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    names = base_layers(module)
    assert names and not [name for name in names if "moe_adapt" in name or "embeddings" in name]
    told = moe_adapt("trace", run, "--dtype", "fp32", "int8", "--data", "train")
    assert told.code == 0, told.err
    assert "int8" in told.out and "1.0000" in told.out


def test_shifts_of_texts(moe_adapt, run):  # noqa: F811
    found = text_shifts(open_model(run), ROWS)
    assert found["none"].shift == 0.0 and found["none"].same == 1.0
    assert all(found[name].shift > 0 for name in ("typos", "case", "appended"))
    assert 0.0 <= found["case"].accuracy <= 1.0
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    told = moe_adapt("trace", run, "--shift", "rows.jsonl")
    assert told.code == 0, told.err
    assert "appended" in told.out and "6 rows" in told.out


def test_contrast_of_traces(moe_adapt, run):  # noqa: F811
    for name, split in (("one", "train"), ("two", "validation")):
        assert moe_adapt("trace", run, "--to", name, "--data", split).code == 0
    told = moe_adapt("trace", "--contrast", "one", "two")
    assert told.code == 0, told.err
    assert "more in one" in told.out
    same = moe_adapt("trace", "--contrast", "one", "one")
    assert "(+0.00)" in same.out and "(-0" not in same.out


@pytest.mark.parametrize(
    "words",
    [(), ("RUN",), ("RUN", "--compare", "a", "b"), ("--to", "x"), ("RUN", "--to", "x", "--dtype", "bf16")],
)
def test_exactly_one_thing_is_asked_for(moe_adapt, words):
    result = moe_adapt("trace", *words)
    assert result.code == 2 and "needs a RUN with one of" in result.err


def test_rounding():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    assert round_weight(weight, "fp32") is weight
    errors = {name: float((round_weight(weight, name) - weight).norm()) for name in ("bf16", "int8", "nf4")}
    assert 0 < errors["bf16"] < errors["int8"] < errors["nf4"] < 0.15 * float(weight.norm())
    for name in ("bf16", "int8", "nf4"):
        rounded = round_weight(weight, name)
        torch.testing.assert_close(round_weight(rounded, name), rounded, rtol=1e-5, atol=1e-6)
    published = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
    published += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
    torch.testing.assert_close(
        normal_float_levels(), torch.tensor(published, dtype=torch.float64), rtol=0, atol=6e-5
    )
