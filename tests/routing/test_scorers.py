"""Scorers: what each looks at, and nothing else."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing import (
    MODIFIERS,
    CosineScorer,
    FrozenLinearScorer,
    HashScorer,
    KMeansScorer,
    Logits,
    PhatgooseScorer,
    RandomFixedScorer,
    RandomScorer,
    RouteContext,
    TopKSelector,
)

WIDTH, EXPERTS = 6, 5
BANK = ExpertBank(torch.randn(EXPERTS, 2, WIDTH), torch.randn(3, EXPERTS, 2), scale=1.0)


def tokens(count=40, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def gates_of(scorer, ids, k=2):
    """Gates [B, S, E] of a scorer of token ids."""
    logits = scorer(torch.zeros(ids.numel(), WIDTH), RouteContext(input_ids=ids), BANK)
    gates = TopKSelector(k=k)(Logits(logits, logits), RouteContext()).gates
    return gates.view(*ids.shape, -1)


@pytest.mark.parametrize("scorer", [HashScorer(EXPERTS), RandomFixedScorer(EXPERTS)])
def test_equal_token_ids_get_equal_gates_in_any_batch(scorer):
    ids = torch.randint(50_000, (4, 9), generator=torch.Generator().manual_seed(0))
    gates = gates_of(scorer, ids)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    shuffled = gates_of(scorer, ids.flatten()[order].view(1, 36))
    assert torch.equal(gates.view(36, -1)[order], shuffled[0])
    assert torch.equal(gates_of(scorer, ids[2:3, 3:4])[0, 0], gates[2, 3])


def test_hash_is_the_remainder():
    gates = gates_of(HashScorer(EXPERTS), torch.tensor([[0, 7, 13, 5]]), k=1)
    assert torch.equal(gates[0], F.one_hot(torch.tensor([0, 2, 3, 0]), EXPERTS).float())


def test_random_fixed_spreads_evenly_and_follows_its_seed():
    ids = torch.arange(20_000).view(1, -1)
    picks = gates_of(RandomFixedScorer(EXPERTS), ids) > 0
    share = 2 / EXPERTS
    sigma = (ids.numel() * share * (1 - share)) ** 0.5
    assert ((picks.sum(dim=(0, 1)) - ids.numel() * share).abs() < 4 * sigma).all()
    pairs = (picks[0].float().t() @ picks[0].float())[~torch.eye(EXPERTS, dtype=torch.bool)]
    assert pairs.min() > 0.9 * ids.numel() / 10
    assert torch.equal(picks, gates_of(RandomFixedScorer(EXPERTS, seed=0), ids) > 0)
    other = gates_of(RandomFixedScorer(EXPERTS, seed=1), ids) > 0
    overlap = (picks & other).sum() / picks.sum()
    assert overlap == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("scorer", [HashScorer(EXPERTS), RandomFixedScorer(EXPERTS)])
def test_scorers_of_token_ids_say_when_there_are_none(scorer):
    context = RouteContext()
    context.enter_site("default", "layers.3.up_proj")
    with pytest.raises(UserError, match=r"'layers.3.up_proj' needs token ids.*without input_ids"):
        scorer(tokens(4), context, BANK)
    context = RouteContext(input_ids=torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(UserError, match=r"shape \[4\] does not fit input_ids of shape \[2, 3\]"):
        scorer(tokens(4), context, BANK)


def test_token_ids_follow_the_shape_of_the_input():
    context = RouteContext(input_ids=torch.arange(6).view(2, 3))
    assert context.flat_input_ids((2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert context.flat_input_ids((6,)).tolist() == [0, 1, 2, 3, 4, 5]


def test_frozen_linear_has_nothing_to_train():
    scorer = FrozenLinearScorer(WIDTH, EXPERTS)
    assert list(scorer.parameters()) == []
    x = tokens()
    torch.testing.assert_close(scorer(x, RouteContext(), BANK), x @ scorer.state_dict()["weight"].t())


@pytest.mark.parametrize("space", [None, 2])
def test_cosine_ignores_the_length_of_tokens_and_rows(space):
    torch.manual_seed(0)
    scorer = CosineScorer(WIDTH, EXPERTS, space=space).double()
    x = tokens().double()
    logits = scorer(x, RouteContext(), BANK)
    torch.testing.assert_close(scorer(7 * x, RouteContext(), BANK), logits)
    assert logits.abs().max() <= 1 / 0.07 + 1e-4
    with torch.no_grad():
        scorer.weight.mul_(3)
    torch.testing.assert_close(scorer(x, RouteContext(), BANK), logits)
    assert scorer(torch.zeros_like(x[:1]), RouteContext(), BANK).tolist() == [[0] * EXPERTS]


def test_cosine_temperature_is_learned_or_fixed():
    x = tokens()
    learned = CosineScorer(WIDTH, EXPERTS, temperature=0.5)
    fixed = CosineScorer(WIDTH, EXPERTS, temperature=0.5, learn_temperature=False)
    fixed.load_state_dict({"weight": learned.weight.detach()})
    torch.testing.assert_close(fixed(x, RouteContext(), BANK), learned(x, RouteContext(), BANK))
    cosine = F.cosine_similarity(x.unsqueeze(1), fixed.weight.unsqueeze(0), dim=-1)
    torch.testing.assert_close(fixed(x, RouteContext(), BANK), 2 * cosine)
    learned(x, RouteContext(), BANK).square().sum().backward()
    assert learned.log_temperature.grad.abs().sum() > 0


def test_cosine_parameters_and_the_warning():
    def parameters(scorer):
        return sum(parameter.numel() for parameter in scorer.parameters())

    assert parameters(CosineScorer(64, 8, learn_temperature=False)) == 64 * 8
    assert parameters(CosineScorer(64, 8, space=4, learn_temperature=False)) == 4 * (64 + 8)
    with pytest.warns(UserWarning, match="more parameters than without"):
        CosineScorer(64, 8, space=64)


def clusters(count, seed, shares=(0.4, 0.3, 0.15, 0.1, 0.05)):
    """Tokens around five orthogonal directions, of unequal frequency, with their cluster."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
    lengths = 1 + 3 * torch.rand(count, 1, generator=generator)
    noise = 0.05 * torch.randn(count, WIDTH, generator=generator)
    return (torch.eye(EXPERTS, WIDTH)[cluster] + noise) * lengths, cluster


def learn(scorer, x, **context):
    """Return the logits of a training step of one forward, after the step."""
    ctx = RouteContext(training=True, **context)
    logits = scorer(x, ctx, BANK)
    scorer.after_step({name: value for (*_, name), value in ctx.sums.items()})
    return logits


def test_k_means_finds_the_clusters_and_leaves_no_expert_unused():
    scorer = KMeansScorer(WIDTH, EXPERTS)
    assert list(scorer.parameters()) == []
    for step in range(20):
        learn(scorer, clusters(100, seed=step)[0])
    x, cluster = clusters(500, seed=99)
    best = scorer(x, RouteContext(), BANK).argmax(dim=-1)
    assert len(set(zip(best.tolist(), cluster.tolist(), strict=True))) == EXPERTS
    assert best.unique().numel() == EXPERTS


def test_k_means_is_the_running_mean_of_unit_tokens():
    scorer = KMeansScorer(WIDTH, 1)
    x = tokens(8)
    learn(scorer, x[:3])
    learn(scorer, x[3:])
    torch.testing.assert_close(scorer.means[0], F.normalize(x, dim=-1).mean(0))
    assert scorer.counts.item() == 8
    scorer.counts.fill_(1e6)
    before = scorer.means.clone()
    learn(scorer, x)
    target = F.normalize(x, dim=-1).mean(0)
    torch.testing.assert_close(scorer.means[0], before[0] + 0.01 * (target - before[0]))


def test_k_means_waits_for_distinct_tokens():
    scorer = KMeansScorer(WIDTH, EXPERTS)
    assert scorer(tokens(4), RouteContext(), BANK).unique().numel() == 1
    learn(scorer, torch.eye(2, WIDTH).repeat(10, 1))
    assert sorted(scorer.counts.tolist()) == [0, 0, 0, 10, 10]
    logits = scorer(tokens(30), RouteContext(), BANK)
    assert (logits.argmax(dim=-1) < 2).all()
    learn(scorer, tokens(30))
    assert (scorer.counts > 0).all()


def test_k_means_leaves_padding_and_evaluation_out():
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :12] = False
    x = tokens(40)
    masked, short = KMeansScorer(WIDTH, EXPERTS), KMeansScorer(WIDTH, EXPERTS)
    for _ in range(2):
        learn(masked, x, token_mask=mask)
        learn(short, x[mask.flatten()])
    torch.testing.assert_close(masked.means, short.means)
    assert masked.counts.sum() == 2 * 28
    before = masked.means.clone()
    masked(tokens(seed=5), RouteContext(training=False), BANK)
    assert torch.equal(masked.means, before)
    learn(masked, x, token_mask=torch.zeros(2, 20))
    assert torch.equal(masked.means, before)


def test_k_means_learns_from_two_micro_batches_as_from_one_batch():
    x = tokens(40)
    whole, parts = KMeansScorer(WIDTH, EXPERTS), KMeansScorer(WIDTH, EXPERTS)
    learn(whole, x)
    parts.load_state_dict(whole.state_dict())
    learn(whole, x)
    sums = {}
    for piece in x.split(20):
        before = parts.means.clone()
        parts(piece, RouteContext(training=True, sums=sums), BANK)
        assert torch.equal(parts.means, before)
    parts.after_step({name: value for (*_, name), value in sums.items()})
    torch.testing.assert_close(parts.means, whole.means)
    assert torch.equal(parts.counts, whole.counts)


def test_k_means_draws_nothing_from_the_global_generator():
    state = torch.get_rng_state()
    KMeansScorer(WIDTH, EXPERTS)(tokens(), RouteContext(training=True), BANK)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CosineScorer(4, 2, temperature=0),
        lambda: CosineScorer(4, 2, space=0),
        lambda: KMeansScorer(4, 2, temperature=-1),
        lambda: KMeansScorer(4, 2, decay=1.0),
    ],
)
def test_options_out_of_range_are_refused(build):
    with pytest.raises(UserError):
        build()


def test_phatgoose_is_the_product_of_the_normed_token_and_each_unit_vector():
    scorer, x = PhatgooseScorer(WIDTH, EXPERTS), 3 * tokens() + 1
    scorer.weight.data = torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(2))
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    unit = scorer.weight.detach() / scorer.weight.detach().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(scorer(x, RouteContext(), BANK).detach(), normed @ unit.T / WIDTH**0.5)
    assert not PhatgooseScorer(WIDTH, EXPERTS).weight.any()


def test_a_projection_that_saves_parameters_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CosineScorer(64, 8, space=7)
    with pytest.warns(UserWarning, match="more parameters"):
        CosineScorer(64, 8, space=8)


def test_no_packaged_modifier_reads_tokens_so_that_all_go_on_convolutions():
    assert [name for name in MODIFIERS if MODIFIERS.get(name).reads_input] == []


@pytest.mark.parametrize(("level", "draws"), [("batch", 1), ("sequence", 40), ("token", 360)])
def test_random_draws_one_expert_per_batch_sequence_or_token(level, draws):
    ids = torch.zeros(40, 9, dtype=torch.long)
    x, scorer = torch.zeros(360, WIDTH), RandomScorer(EXPERTS, level=level)
    torch.manual_seed(0)
    context = RouteContext(input_ids=ids, training=True)
    logits = scorer(x, context, BANK)
    assert torch.equal(logits.softmax(-1).sort(-1).values[:, -1], torch.ones(360))
    chosen = logits.argmax(-1).view(draws, -1)
    assert (chosen == chosen[:, :1]).all(), "what shares a draw has one expert"
    assert torch.equal(scorer(x, context, BANK), logits), "a recomputation draws the same"
    torch.manual_seed(0)
    assert torch.equal(scorer(x, RouteContext(input_ids=ids, training=True), BANK), logits)
    if draws > 1:
        share = torch.bincount(chosen[:, 0], minlength=EXPERTS)
        sigma = (draws / EXPERTS * (1 - 1 / EXPERTS)) ** 0.5
        assert ((share - draws / EXPERTS).abs() < 4 * sigma).all()


def test_random_answers_by_the_mean_or_by_token_id():
    ids = torch.arange(12).view(2, 6)
    mean = RandomScorer(EXPERTS)(torch.zeros(12, WIDTH), RouteContext(input_ids=ids), BANK)
    assert torch.equal(mean, torch.zeros(12, EXPERTS))
    scorer = RandomScorer(EXPERTS, evaluation="token")
    one = scorer(torch.zeros(12, WIDTH), RouteContext(input_ids=ids), BANK)
    assert len(one.argmax(-1).unique()) > 1
    alone = scorer(torch.zeros(1, WIDTH), RouteContext(input_ids=ids[1:, 2:3]), BANK)
    assert torch.equal(alone[0], one[8])
    with pytest.raises(UserError, match="level is one of"):
        RandomScorer(EXPERTS, level="site")
    with pytest.raises(UserError, match="works per sequence"):
        RandomScorer(EXPERTS, level="sequence")(torch.zeros(3, WIDTH), RouteContext(training=True), BANK)
