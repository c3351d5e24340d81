"""Balanced assignment: load, unchanged gates, padding, frozen prices, recomputation."""

import peft
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import Logits
from moe_adapt.routing.modifiers.bip_balance import BipBalance, prices
from moe_adapt.tuner import RoutedLoraConfig


def skewed(tokens, experts, strength=1.5, seed=0):
    """Scores that a few experts win."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, experts, generator=generator)
    return (noise + strength * torch.linspace(1, -1, experts)).softmax(dim=1)


def max_vio(scores, q, k):
    chosen = (scores - q).topk(k, dim=1).indices
    load = torch.bincount(chosen.flatten(), minlength=scores.shape[1]).float()
    return float(load.max() / load.mean() - 1)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(1024, 8, 2), (4096, 16, 4), (4096, 64, 8)])
def test_eight_rounds_balance_a_batch(tokens, experts, k):
    scores = skewed(tokens, experts)
    assert max_vio(scores, torch.zeros(experts), k) > 0.5
    found = [max_vio(scores, prices(scores, k, rounds), k) for rounds in (2, 8)]
    assert found[1] < 0.1
    assert found[1] <= found[0]


def test_little_of_the_chosen_probability_is_lost():
    scores = skewed(2048, 8, strength=0.7)
    q = prices(scores, 2, 8)
    kept = scores.gather(1, (scores - q).topk(2, dim=1).indices).sum()
    assert kept / scores.topk(2, dim=1).values.sum() > 0.8


def test_no_round_is_top_k_and_prices_are_not_negative():
    scores = skewed(64, 8)
    assert not prices(scores, 2, 0).any()
    assert (prices(scores, 2, 3) >= 0).all()


@pytest.mark.parametrize(("tokens", "k"), [(0, 2), (1, 2), (50, 8)])
def test_where_nothing_can_be_balanced_prices_are_zero(tokens, k):
    assert not prices(skewed(tokens, 8), k, 4).any()


def adapted(**options):
    torch.manual_seed(0)
    config = RoutedLoraConfig(
        method="bip",
        num_experts=4,
        r=2,
        target_modules=["0"],
        dropout=0.0,
        modifiers=[{"name": "bip_balance", "k": 2, "rounds": 8}],
        **options,
    )
    return peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), config)


def test_the_gates_are_those_of_the_unbiased_logits():
    modifier = BipBalance(4, k=2, rounds=4)
    logits = torch.randn(32, 4)

    class Training:
        training = True

        def flat_mask(self, shape):
            return None

        def accumulate(self, name, value):
            pass

    out = modifier(Logits(logits, logits), torch.empty(32, 1), Training())
    assert torch.equal(out.weight, logits)
    assert not torch.equal(out.select, logits)


def test_a_token_does_not_depend_on_its_batch_in_evaluation():
    model = adapted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.base_model.follow(optimizer)
    model.train()
    x = torch.randn(64, 6) + torch.tensor([2.0, 0, 0, 0, 0, 0])
    model(x).sum().backward()
    optimizer.step()
    price = next(value for name, value in model.named_buffers() if "__price." in name)
    assert price.any()
    model.eval()
    together = model(x)
    torch.testing.assert_close(together[:5], model(x[:5]))


def test_padding_has_no_say():
    class Masked:
        training = True

        def __init__(self):
            self.sums = {}

        def flat_mask(self, shape):
            return torch.arange(40) < 32

        def accumulate(self, name, value):
            self.sums[name] = value

    logits = torch.randn(40, 4)
    other = logits.clone()
    other[32:] = 50 * torch.randn(8, 4)
    prices_of = []
    for given in (logits, other):
        ctx = Masked()
        BipBalance(4)(Logits(given, given), torch.empty(40, 1), ctx)
        prices_of.append(ctx.sums["price"])
    assert torch.equal(*prices_of)


def test_bad_options_are_said():
    with pytest.raises(UserError, match="k of 4 experts"):
        BipBalance(4, k=5)
    with pytest.raises(UserError, match="rounds are 0 or more"):
        BipBalance(4, rounds=-1)
