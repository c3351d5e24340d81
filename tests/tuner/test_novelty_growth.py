"""A pool that grows at the borders that nobody announces, and stays as it is where there is none."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.hub.load import load_adapter
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.novelty_growth import GrowOnNovelty
from tests.tuner.tiny import adapted, llama


def train(model, ranges, grow, batches=14, size=8):
    """Train on batches of random tokens from one range of ids after the other."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    grown = []
    for low, high in ranges:
        for _ in range(batches):
            ids = torch.randint(low, high, (size, 12), generator=generator)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            grown.append(grow.step(optimizer))
    return grown, optimizer


def test_it_grows_after_each_border_and_goes_on_learning(tmp_path):
    model = adapted("soft", num_experts=2)
    grow = GrowOnNovelty(model.base_model, reference=64)
    grown, optimizer = train(model, [(1, 20), (40, 60)], grow)
    assert sum(grown) == 1 and grown.index(True) >= 14
    assert grow.added == [["2"]]
    layer = adapted_layers(model.base_model.model)[0]
    assert layer.frozen_experts("default") == {0, 1} and layer.moe_adapt_B["default"].any()
    assert any(p is layer.moe_adapt_B["default"] for g in optimizer.param_groups for p in g["params"])
    model.save_pretrained(str(tmp_path))
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        again = load_adapter(llama(), tmp_path).eval()(input_ids=ids).logits
        assert torch.equal(again, model.eval()(input_ids=ids).logits)


def test_a_stream_that_stays_is_no_alarm_and_evaluation_is_not_watched():
    model = adapted("soft", num_experts=2)
    grow = GrowOnNovelty(model.base_model, reference=64)
    grown, _ = train(model, [(1, 20)], grow, batches=30)
    assert not any(grown) and grow.watch.seen == 240
    model.eval()(input_ids=torch.full((8, 12), 50))
    assert not grow.step() and grow.watch.seen == 240
    grow.remove()
    model.train()(input_ids=torch.full((8, 12), 50))
    grow.step()
    assert grow.watch.seen == 240


def test_it_adds_at_least_one():
    with pytest.raises(UserError, match="at least one expert"):
        GrowOnNovelty(adapted("soft", num_experts=2).base_model, experts=0)
