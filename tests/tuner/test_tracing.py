import math

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.compare import compare_traces
from moe_adapt.evaluation.trace.metrics import trace_metrics
from moe_adapt.tuner.methods import METHODS
from moe_adapt.tuner.tracing import TraceRecorder, router_geometry, sample_hash
from tests.tuner.tiny import adapted, batch

Q = "model.layers.0.self_attn.q_proj"


def recorded(model, batches, **options):
    recorder = TraceRecorder(model.base_model, **options)
    model.eval()
    for one in batches:
        with recorder.forward(one["input_ids"], one["attention_mask"], one.get("groups")):
            model(input_ids=one["input_ids"], attention_mask=one["attention_mask"])
    return recorder.trace()


def pieces(whole):
    return [{name: tensor[row : row + 1] for name, tensor in whole.items()} for row in range(2)]


def padded(whole, left):
    shape = (2, 3)
    extra = {"input_ids": torch.zeros(shape).long(), "attention_mask": torch.zeros(shape).long()}
    order = (lambda a, b: [a, b]) if left else (lambda a, b: [b, a])
    return {name: torch.cat(order(extra[name], whole[name]), dim=1) for name in extra}


def test_records_what_the_router_decided():
    model, one = adapted("top_k", num_experts=5), batch()
    trace = recorded(model, [one], keep_token_ids=True)
    tuner = model.base_model
    with torch.inference_mode(), tuner.record():
        model(**one)
    records = {record.site: record for record in tuner.hooks.session.context.records.values()}
    assert list(trace.sites) == list(records)
    keep = one["attention_mask"].bool()
    for name, site in trace.sites.items():
        record = records[name]
        assert torch.equal(site.selected, record.selected[keep.flatten()])
        assert torch.allclose(site.gates, record.gates[keep.flatten()], atol=1e-3)
        assert torch.allclose(site.probs.float(), record.logits[keep.flatten()].softmax(-1), atol=1e-3)
    table = trace.table(Q)
    assert len(trace.tables) == 1
    assert table.sample.tolist() == [0] * 4 + [1] * 7
    assert table.position.tolist() == [*range(4), *range(7)]
    assert table.ids.tolist() == one["input_ids"][keep].tolist()
    stats = tuner.routing_stats()[Q]
    metrics = trace_metrics(trace)["sites"][Q]
    assert metrics["load"] == pytest.approx(stats.load.tolist())
    assert metrics["importance"] == pytest.approx(stats.importance.tolist(), abs=1e-3)
    assert metrics["entropy"] == pytest.approx(stats.entropy, abs=1e-3)


def test_null_experts_are_no_experts():
    model, one = adapted("adamoe"), batch()
    trace = recorded(model, [one])
    with torch.inference_mode(), model.base_model.record():
        model(**one)
    metrics = trace_metrics(trace)["sites"]
    for name, stats in model.base_model.routing_stats().items():
        assert trace.sites[name].nulls == 8
        assert trace.sites[name].gates.shape[1] == len(stats.load)
        assert metrics[name]["mean_k"] == pytest.approx(stats.mean_k)
        assert metrics[name]["entropy"] == pytest.approx(stats.entropy, abs=1e-3)
        assert metrics[name]["load"] == pytest.approx(stats.load.tolist())
    assert any(bool((site.first < 0).any()) for site in trace.sites.values())
    compared = compare_traces(trace, recorded(model, pieces(one)))
    assert all(row.stability == row.top1 == 1 for row in compared.values())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_batches_and_padding_change_nothing(method):
    model = adapted(method)
    whole = {name: tensor for name, tensor in batch().items() if name != "labels"}
    base = recorded(model, [whole])
    for other in (pieces(whole), [padded(whole, left=True)], [padded(whole, left=False)]):
        found = compare_traces(base, recorded(model, other))
        assert all(row.stability == row.top1 == 1 for row in found.values())
        assert all(row.js < 1e-4 for row in found.values())


def test_a_changed_router_shows():
    model, one = adapted("top_k"), batch()
    before = recorded(model, [one])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.1.mlp.gate_proj.moe_adapt_router__" in name:
                parameter.copy_(-parameter)
    found = compare_traces(before, recorded(model, [one]))
    changed = [name for name, row in found.items() if row.stability < 1]
    assert changed[0] == "model.layers.1.mlp.gate_proj"
    assert set(changed) <= {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.down_proj"}


def test_groups_and_chosen_sites():
    one = batch() | {"groups": torch.tensor([1, -1])}
    trace = recorded(adapted("top_k"), [one], sites=r"layers\.0.*_proj$", keep_probs=False)
    assert all(".0." in name for name in trace.sites)
    assert trace.groups.tolist() == [1, -1]
    assert trace.group_names == ["0", "1"]
    assert trace.token_groups(Q).tolist() == [1] * 4 + [-1] * 7
    assert trace.tables[0].ids is None
    assert all(site.probs is None for site in trace.sites.values())


def test_mistakes_are_told():
    model = adapted("top_k")
    with pytest.raises(UserError, match=r"no adapted layer matches 'gate_prj'\. Did you mean 'gate_proj'"):
        TraceRecorder(model.base_model, sites="gate_prj")
    with pytest.raises(UserError, match="no regular expression"):
        TraceRecorder(model.base_model, sites="(")
    recorder = TraceRecorder(model.base_model)
    with pytest.raises(UserError, match="nothing was recorded"):
        recorder.trace()
    with pytest.raises(UserError, match="all tokens are padding"):
        recorded(model, [batch() | {"attention_mask": torch.zeros(2, 7).long()}])
    with pytest.raises(RuntimeError, match="no forward"), recorder.forward(batch()["input_ids"]):
        pass
    with pytest.raises(UserError, match="14 tokens for 3 samples"), recorder.forward(torch.zeros(3, 7)):
        model(input_ids=batch()["input_ids"])


def test_recording_leaves_training_as_it_was():
    model = adapted("top_k")
    recorded(model, [batch()])
    session = model.base_model.hooks.session
    assert not session.tracing
    model.train()
    model(**batch()).loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_hash_knows_values_and_types():
    row = torch.tensor([1, 2, 3])
    assert sample_hash(row) != sample_hash(torch.tensor([1, 3, 2]))
    assert sample_hash(row) != sample_hash(row.int())
    assert 0 <= sample_hash(torch.zeros(0)) < 2**63
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert sample_hash(image) == sample_hash(image.permute(2, 1, 0).contiguous().permute(2, 1, 0))


def test_geometry_follows_the_experts():
    model = adapted("top_k", num_experts=4)
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    with torch.no_grad():
        rows = layer.moe_adapt_router__scorer__weight["default"]
        layer.moe_adapt_A["default"][:, 1] = 3 * rows
    assert router_geometry(model.base_model)[Q]["coupling"] == pytest.approx(1, abs=1e-5)
    model.base_model.freeze_experts([2])
    found = router_geometry(model.base_model)[Q]
    assert found["coupling"] == pytest.approx(1, abs=1e-5)
    assert math.isfinite(found["row_similarity"])
    assert router_geometry(adapted("adamoe").base_model).keys() == router_geometry(model.base_model).keys()
    assert router_geometry(adapted("soft", scorer="uniform").base_model) == {}
