"""Selectors: hand-computed cases, a literal loop, and properties that hold for every registered one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.checks import check_selector
from moe_adapt.errors import UserError
from moe_adapt.routing import SELECTORS, DynMoleSelector, Logits, RouteContext, TopKSelector, TopPSelector
from moe_adapt.routing.entropy import tsallis_entropy
from moe_adapt.routing.selectors.growing_top_k import GrowingTopKSelector
from moe_adapt.routing.softmax import softmax

CONTEXT = RouteContext()


def decide(selector, logits):
    return selector(Logits(logits, logits), CONTEXT)


def of_probs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize("name", list(SELECTORS))
def test_registered_selectors_pass_the_public_check(name):
    check_selector(SELECTORS.get(name)())


@pytest.mark.parametrize(
    ("probs", "exclusive", "inclusive"), [((0.5, 0.3, 0.15, 0.05), 1, 2), ((0.3, 0.3, 0.2, 0.2), 2, 3)]
)
def test_dynmole_inclusive_and_exclusive_top_p(probs, exclusive, inclusive):
    for is_inclusive, expected in ((False, exclusive), (True, inclusive)):
        selector = DynMoleSelector(keep_top_k=1, entropy_threshold=1.1, inclusive=is_inclusive)
        assert decide(selector, of_probs(probs)).selected.sum().item() == expected


def test_dynmole_sends_uncertain_tokens_to_all_experts():
    decision = decide(DynMoleSelector(), of_probs((0.3, 0.3, 0.2, 0.2), (0.9, 0.05, 0.03, 0.02)))
    assert decision.selected.sum(-1).tolist() == [4, 2]
    torch.testing.assert_close(decision.gates.sum(-1), torch.tensor([1.0, 0.95], dtype=torch.float64))


def test_dense_branch_of_dynmole_is_the_softmax_bit_for_bit():
    logits = torch.randn(50, 6)
    gates = decide(DynMoleSelector(entropy_threshold=-1), logits).gates
    assert torch.equal(gates, softmax(logits))


def test_keeping_every_expert_is_the_softmax():
    logits = torch.randn(50, 6)
    selector = DynMoleSelector(keep_top_k=6, entropy_threshold=1.1)
    assert torch.equal(decide(selector, logits).gates, softmax(logits))


def literal_dynmole(probs, selector):
    """The rule token by token, as one would write it down."""
    gates = torch.zeros_like(probs)
    for token, row in enumerate(probs):
        if tsallis_entropy(row + selector.eps, selector.q) > selector.entropy_threshold:
            gates[token] = row
            continue
        ranked = sorted(range(len(row)), key=lambda expert: (-row[expert].item(), expert))
        mass = 0.0
        for rank, expert in enumerate(ranked):
            mass += row[expert].item()
            if mass <= selector.top_p or rank < selector.keep_top_k:
                gates[token, expert] = row[expert]
    return gates


def test_dynmole_equals_a_literal_loop():
    logits = 2 * torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    selector = DynMoleSelector()
    decision = decide(selector, logits)
    assert 0 < (decision.selected.sum(-1) == 6).double().mean() < 1
    torch.testing.assert_close(decision.gates, literal_dynmole(logits.softmax(-1), selector))


@settings(max_examples=30)
@given(low=st.floats(0.1, 0.9), step=st.floats(0.0, 0.5), seed=st.integers(0, 99))
def test_experts_per_token_grow_with_top_p_and_fall_with_the_threshold(low, step, seed):
    logits = 2 * torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))

    def kept(**options):
        return decide(DynMoleSelector(keep_top_k=1, **options), logits).selected.sum(-1)

    high = min(low + step, 1.0)
    assert (kept(top_p=high) >= kept(top_p=low)).all()
    assert (kept(entropy_threshold=low) >= kept(entropy_threshold=high)).all()
    assert (kept(top_p=low) >= 1).all()


def test_top_k_takes_the_best_and_renormalises():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    gates = decide(TopKSelector(k=2), logits).gates
    expected = torch.tensor([3.0, 2.0]).softmax(-1)
    torch.testing.assert_close(gates, torch.tensor([[0, expected[0], 0, expected[1]]]))
    raw = decide(TopKSelector(k=2, renormalize=False), logits).gates
    torch.testing.assert_close(raw[0, 1], logits.softmax(-1)[0, 1])


def test_ties_go_to_the_lower_index():
    logits = torch.zeros(3, 5)
    assert decide(TopKSelector(k=2), logits).selected.nonzero()[:, 1].tolist() == [0, 1] * 3
    sparse = DynMoleSelector(entropy_threshold=1.1, top_p=0.3, keep_top_k=1)
    assert decide(sparse, logits).selected.nonzero()[:, 1].tolist() == [0] * 3


def test_selecting_and_weighting_may_differ():
    select, weight = torch.tensor([[5.0, 0.0, 1.0]]), torch.tensor([[0.0, 9.0, 0.0]])
    gates = TopKSelector(k=2)(Logits(select, weight), CONTEXT).gates
    torch.testing.assert_close(gates, torch.tensor([[0.5, 0.0, 0.5]]))


def test_top_p_keeps_the_mass_and_not_one_expert_more():
    probs = torch.randn(100, 8).softmax(-1).double()
    decision = decide(TopPSelector(top_p=0.6, renormalize=False), probs.log())
    kept = torch.where(decision.selected, probs, 0)
    assert (kept.sum(-1) >= 0.6 - 1e-9).all()
    smallest = torch.where(decision.selected, probs, 2).min(-1).values
    assert ((kept.sum(-1) - smallest) < 0.6).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: TopKSelector(k=0),
        lambda: TopPSelector(top_p=0),
        lambda: TopPSelector(top_p=1.5),
        lambda: DynMoleSelector(keep_top_k=0),
        lambda: DynMoleSelector(q=-1),
        lambda: TopKSelector(k=9).check(8),
    ],
)
def test_options_out_of_range_are_refused(build):
    with pytest.raises(UserError):
        build()


def test_dynmole_adds_eps_before_it_takes_the_entropy():
    """1 - sum p^2 over 1 - 1/E: 0.6133 without eps, 0.5263 with 0.05 added to each of four."""
    probs = of_probs((0.7, 0.2, 0.06, 0.04))
    options = {"q": 2.0, "top_p": 0.5, "keep_top_k": 1}
    for eps, entropy in ((0.0, 0.6197), (0.05, 0.4731)):
        for threshold, experts in ((entropy - 1e-3, 4), (entropy + 1e-3, 1)):
            selector = DynMoleSelector(eps=eps, entropy_threshold=threshold, **options)
            assert decide(selector, probs).selected.sum().item() == experts
    assert DynMoleSelector().eps == 1e-5


@pytest.mark.parametrize(
    ("progress", "experts"), [(0.0, 2), (0.12, 2), (0.13, 3), (0.37, 3), (0.4, 4), (0.9, 6), (1.0, 6)]
)
def test_growing_top_k_takes_the_nearest_number_of_experts(progress, experts):
    selector, logits = GrowingTopKSelector(k_min=2, k_max=6, k_eval=3), torch.randn(5, 8)
    training = selector(Logits(logits, logits), RouteContext(training=True, progress=progress))
    assert training.selected.sum(-1).tolist() == [experts] * 5
    torch.testing.assert_close(training.gates.sum(-1), torch.ones(5))
    assert decide(selector, logits).selected.sum(-1).tolist() == [3] * 5
    assert decide(GrowingTopKSelector(k_min=2, k_max=6), logits).selected.sum(-1).tolist() == [6] * 5
