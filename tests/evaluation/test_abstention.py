"""Abstention and the watch of a stream: clusters told apart, calibrated shares, no alarm without a change."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.abstention import Abstention, auroc
from moe_adapt.evaluation.novelty import expert_disagreement
from moe_adapt.evaluation.novelty_watch import Bets, NoveltyWatch, upper_rank


def cluster(direction, count, seed, noise=0.4):
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(16)[direction] + noise * torch.randn(count, 16, generator=generator) / 4


def known(count=200, seed=0):
    rows = torch.stack([cluster(0, count, seed), cluster(1, count, seed + 1)], dim=1).flatten(0, 1)
    return rows, torch.tensor([0, 1]).repeat(count)


def test_new_clusters_score_higher_and_known_rows_lose_their_share():
    rows, classes = known()
    fitted = Abstention.fit(rows, classes, share=0.1)
    fresh = fitted.novelty(known(seed=7)[0])
    far = fitted.novelty(cluster(5, 200, seed=9))
    assert auroc(far, fresh) > 0.95
    assert (far > fitted.cut).float().mean() > 0.9
    assert 0.04 < float((fresh > fitted.cut).float().mean()) < 0.18
    on_prototypes = fitted.novelty(fitted.prototypes)
    assert (on_prototypes <= fitted.cut).all() and float(on_prototypes.max()) < 0.01


def test_experts_that_contradict_each_other_count_too():
    rows, classes = known()
    agree = torch.rand(len(rows), 3, 4, generator=torch.Generator().manual_seed(3)).mul(0.1).softmax(-1)
    fitted = Abstention.fit(rows, classes, expert_disagreement(agree, "js"), share=0.1)
    split = torch.eye(4)[:3].expand(4, 3, 4) * 0.97 + 0.01
    assert (fitted.novelty(fitted.prototypes, torch.zeros(2)) <= fitted.cut).all()
    assert (fitted.novelty(rows[:4], expert_disagreement(split, "js")) > fitted.cut).all()


def test_auroc_by_hand_and_on_equal_scores():
    assert auroc(torch.tensor([3.0, 1.0]), torch.tensor([2.0])) == 0.5
    assert auroc(torch.ones(3), torch.ones(5)) == 0.5
    one, other = torch.randn(30, generator=torch.Generator().manual_seed(0)), torch.arange(20) / 10 - 1
    pairs = (one[:, None] > other).double() + 0.5 * (one[:, None] == other)
    assert auroc(one, other) == pytest.approx(float(pairs.mean()))
    assert auroc(one, other) == pytest.approx(1 - auroc(other, one))


def test_ranks_of_the_same_distribution_are_uniform():
    generator = torch.Generator().manual_seed(0)
    ranks = upper_rank(torch.randn(4000, generator=generator), torch.randn(4000, generator=generator))
    assert float(ranks.min()) > 0 and float(ranks.max()) <= 1
    assert abs(float(ranks.mean()) - 0.5) < 0.03 and abs(float((ranks < 0.1).double().mean()) - 0.1) < 0.02


def test_a_bet_is_fair():
    outcomes = []
    for first in (0.25, 0.75):
        for second in (0.25, 0.75):
            bets = Bets()
            bets.bet(first)
            bets.bet(second)
            outcomes.append(bets.capital)
    assert sum(outcomes) / 4 == pytest.approx(1.0)


def test_a_stationary_stream_has_no_alarm():
    false = 0
    for seed in range(5):
        rows, _ = known(count=600, seed=10 * seed)
        watch = NoveltyWatch(reference=200, alpha=1e-3)
        watch.observe(rows)
        false += len(watch.alarms)
    assert false == 0


def test_each_new_domain_is_an_alarm_soon_after_its_border_and_an_old_one_is_none():
    watch = NoveltyWatch(reference=100, alpha=1e-3)
    stream = [cluster(0, 400, 0), cluster(3, 400, 1), cluster(6, 400, 2), cluster(0, 400, 3)]
    watch.observe(torch.cat(stream))
    assert len(watch.alarms) == 2
    assert 400 <= watch.alarms[0] < 440 and 800 <= watch.alarms[1] < 840


def test_batches_do_not_matter():
    rows = torch.cat([cluster(0, 150, 0), cluster(3, 100, 1)])
    one, many = NoveltyWatch(reference=100), NoveltyWatch(reference=100)
    one.observe(rows)
    said = [many.observe(part) for part in rows.split(7)]
    assert one.alarms == many.alarms and sum(said) == len(one.alarms) == 1


def test_bad_input_is_one_sentence():
    rows, classes = known(count=5)
    with pytest.raises(UserError, match="20 rows or more, got 10"):
        Abstention.fit(rows, classes)
    rows, classes = known(count=20)
    with pytest.raises(UserError, match="between 0 and 1"):
        Abstention.fit(rows, classes, share=1.0)
    with pytest.raises(UserError, match="both kinds"):
        auroc(torch.ones(0), torch.ones(1))
    with pytest.raises(UserError, match="20 rows or more"):
        NoveltyWatch(reference=5)
    with pytest.raises(UserError, match="alpha and jump"):
        Bets(alpha=0.0)
