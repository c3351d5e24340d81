import dataclasses
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace import file as trace_file
from moe_adapt.evaluation.trace.compare import compare_traces
from moe_adapt.evaluation.trace.file import load_trace, save_trace
from moe_adapt.evaluation.trace.metrics import SCALARS, trace_metrics
from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace, TokenTable, pack_bits, unpack_bits
from moe_adapt.evaluation.trace.report import html_report
from tests.evaluation.traces import SITES, trace


@given(st.integers(0, 5), st.integers(1, 33), st.integers(0, 99))
def test_packing_keeps_every_bit(tokens, experts, seed):
    selected = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(selected)
    assert packed.shape == (tokens, -(-experts // 8))
    assert torch.equal(unpack_bits(packed, experts), selected)


@pytest.mark.parametrize("options", [{}, {"grouped": False, "probs": False}])
def test_saved_and_loaded_is_the_same(tmp_path, options):
    before = trace(**options)
    file = save_trace(before, tmp_path / "folder")
    assert file == tmp_path / "folder" / "trace.safetensors"
    assert os.listdir(file.parent) == [file.name]
    for path in (file, file.parent):
        after = load_trace(path)
        assert list(after.sites) == list(before.sites)
        assert (after.group_names, after.meta) == (before.group_names, before.meta)
        for name, site in before.sites.items():
            for one in dataclasses.fields(site):
                assert_same(getattr(site, one.name), getattr(after.sites[name], one.name))
        for table, other in zip(before.tables, after.tables, strict=True):
            for one in dataclasses.fields(table):
                assert_same(getattr(table, one.name), getattr(other, one.name))
        assert_same(before.groups, after.groups)
        assert_same(before.samples, after.samples)


def assert_same(a, b):
    assert (a is None) == (b is None)
    if a is not None:
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        assert torch.as_tensor(a).dtype == torch.as_tensor(b).dtype


def test_files_that_are_no_trace(tmp_path):
    with pytest.raises(UserError, match="there is no routing trace"):
        load_trace(tmp_path)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(2)}, other)
    with pytest.raises(UserError, match="no routing trace"):
        load_trace(other)
    other.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load_trace(other)


def test_later_versions_and_missing_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_file, "FORMAT_VERSION", 2)
    file = save_trace(trace(), tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 2"):
        load_trace(file)
    save_trace(trace(), file)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    del tensors["sites.1.packed"]
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(UserError, match=r"is damaged or not a routing trace \(KeyError: 'sites\.1\.packed'"):
        load_trace(file)


def test_inconsistent_parts_are_refused():
    whole = trace()
    first = whole.sites[SITES[0]]
    for change, message in [
        ({"groups": torch.tensor([0, 1])}, "3 samples but groups of 2"),
        ({"groups": torch.tensor([0, 1, 2])}, "in group 2 of 2"),
        ({"samples": torch.tensor([1, 2]), "groups": None}, "samples that are not there"),
        ({"tables": whole.tables[:1]}, "token table that is not there"),
        ({"sites": {"a": dataclasses.replace(first, first=first.first[1:])}}, "first choice of a has shape"),
        ({"sites": {"a": dataclasses.replace(first, weights=first.weights[1:])}}, "23 gates for 24"),
        ({"tables": [TokenTable(torch.zeros(3).int(), torch.zeros(2).int())]}, "differ in length"),
    ]:
        with pytest.raises(UserError, match=message):
            dataclasses.replace(whole, **change)


def test_metrics_of_a_trace():
    one = trace()
    metrics = json.loads(json.dumps(trace_metrics(one, windows=(2, 4)), allow_nan=False))
    assert (metrics["samples"], metrics["tokens"]) == (3, 12)
    site = metrics["sites"][SITES[0]]
    selected = one.sites[SITES[0]].selected
    assert site["mean_k"] == 2
    assert site["k_share"] == [0, 0, 1, 0, 0, 0]
    assert site["load"] == pytest.approx((selected.sum(0) / 24).tolist())
    warm = torch.tensor([True] * 4 + [False] * 6 + [True] * 2)
    assert site["group_load"][0] == pytest.approx((selected[warm].sum(0) / 12).tolist())
    assert 0 < site["group_js"] < 0.7
    assert site["cache_size"] == 4
    assert site["sch"].keys() == site["srp"].keys() == {"2", "4"}
    assert metrics["sites"]["pooler"]["srp"]["4"] is None
    assert metrics["mean"].keys() == set(SCALARS)
    without = trace_metrics(trace(grouped=False, probs=False))
    assert without["mean"]["entropy"] is None
    assert without["mean"]["group_js"] is None


def test_a_trace_agrees_with_itself_and_not_with_another():
    for comparison in compare_traces(trace(), trace()).values():
        assert (comparison.top1, comparison.overlap, comparison.stability) == (1, 1, 1)
        assert (comparison.js, comparison.load_js, comparison.leak) == (0, 0, 0)
    other = compare_traces(trace(0), trace(1))[SITES[0]]
    assert other.overlap < 1
    assert other.js > 0
    assert compare_traces(trace(0), trace(1, probs=False))[SITES[0]].js is None


def test_grown_sites_compare_by_index():
    grown = compare_traces(trace(), trace(1, experts=7))[SITES[0]]
    gates = trace(1, experts=7).sites[SITES[0]].gates
    assert grown.leak == pytest.approx(float(gates[:, 5:].sum() / gates.sum()))
    assert grown.leak > 0


def test_null_experts_are_one_choice():
    p = torch.tensor([[0.25, 0.25, 0.5, 0.0]])
    table = TokenTable(torch.zeros(1).int(), torch.zeros(1).int())

    def routed(probs: torch.Tensor, nulls: int) -> RoutingTrace:
        nothing = torch.zeros(1, 2, dtype=torch.bool)
        site = SiteTrace(2, 0, pack_bits(nothing), torch.zeros(0), torch.tensor([-1]), probs, nulls)
        return RoutingTrace({"a": site}, [table], torch.tensor([1]))

    moved = compare_traces(routed(p, 2), routed(p[:, [0, 1, 3, 2]], 2))["a"]
    assert (moved.top1, moved.overlap, moved.stability, moved.js) == (1, 1, 1, 0)
    assert compare_traces(routed(p, 2), routed(p[:, :3], 1))["a"].js == 0
    metrics = trace_metrics(routed(p, 2))["sites"]["a"]
    assert metrics["k_share"] == [1, 0, 0]
    assert metrics["dead_experts"] == 2


def test_only_traces_of_the_same_tokens_compare():
    one = trace()
    shuffled = dataclasses.replace(one, samples=torch.tensor([22, 11, 44]))
    with pytest.raises(UserError, match="2 in common"):
        compare_traces(one, shuffled)
    table = dataclasses.replace(one.tables[0], position=one.tables[0].position + 1)
    with pytest.raises(UserError, match="different tokens at model"):
        compare_traces(one, dataclasses.replace(one, tables=[table, one.tables[1]]))
    renamed = dataclasses.replace(one, sites={f"x.{name}": site for name, site in one.sites.items()})
    with pytest.raises(UserError, match="no site in common"):
        compare_traces(one, renamed)


def test_report_escapes_and_holds_its_pictures(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG")
    metrics = trace_metrics(dataclasses.replace(trace(), meta={"run": "<script>"}))
    page = html_report(metrics, {"Load": picture}, title="a & b")
    assert "a &amp; b" in page
    assert "<script>" not in page
    assert 'src="data:image/png;base64,iVBORw=="' in page
    assert "http" not in page
    assert SITES[1] in page
