"""Class Gaussians: moments of what is drawn, and the alignment of heads on it."""

import pytest
import torch
import torch.nn.functional as F

from moe_adapt.errors import UserError
from moe_adapt.learners.gaussians import ClassGaussians, align_cosine_heads, mean_scale


def fitted(covariance, rank=2, samples=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gaussians = ClassGaussians(4, covariance, rank, ridge=1e-6)
    gaussians.grow(3)
    labels = torch.arange(3).repeat_interleave(samples)
    mix = torch.randn(3, 4, 4, generator=generator)
    noise = torch.randn(len(labels), 4, generator=generator)
    features = 3 * torch.randn(3, 4, generator=generator)[labels] + torch.einsum(
        "bde,be->bd", mix[labels], noise
    )
    gaussians.fit(features, labels)
    return gaussians, features, labels


@pytest.mark.parametrize("covariance", ["full", "diagonal", "low_rank"])
def test_draws_have_the_moments_of_the_class(covariance):
    gaussians, features, labels = fitted(covariance)
    drawn = gaussians.sample(40000, torch.ones(3), torch.Generator().manual_seed(1))
    for c in range(3):
        rows = features[labels == c]
        torch.testing.assert_close(drawn[c].mean(0), rows.mean(0), rtol=0.02, atol=0.05)
        wanted = torch.cov(rows.T)
        torch.testing.assert_close(drawn[c].var(0), wanted.diagonal(), rtol=0.05, atol=0.05)
        if covariance == "full":
            scale = float(wanted.diagonal().max())
            torch.testing.assert_close(torch.cov(drawn[c].T) / scale, wanted / scale, rtol=0, atol=0.04)


def test_low_rank_of_full_rank_is_full():
    low, _, _ = fitted("low_rank", rank=4)
    full, _, _ = fitted("full")
    rebuilt = low.spread @ low.spread.transpose(1, 2) + torch.diag_embed(low.rest)
    torch.testing.assert_close(rebuilt, full.spread, rtol=1e-4, atol=1e-4)


def test_bytes():
    assert [fitted(kind)[0].statistics_bytes() for kind in ("full", "diagonal", "low_rank")] == [
        4 * 3 * (4 + 16),
        4 * 3 * (4 + 4),
        4 * 3 * (4 + 8 + 4),
    ]


def test_the_factors_follow_the_covariances():
    gaussians, features, labels = fitted("full")
    first = gaussians.factors().clone()
    gaussians.grow(4)
    gaussians.fit(2 * features[labels == 1], labels[labels == 1])
    changed = gaussians.factors()
    torch.testing.assert_close(changed[1], 2 * first[1], rtol=1e-3, atol=1e-4)
    assert torch.equal(changed[[0, 2]], first[[0, 2]])
    torch.testing.assert_close(changed[3], 1e-3 * torch.eye(4))


def test_the_factors_follow_a_loaded_state():
    gaussians, features, labels = fitted("full")
    gaussians.factors()
    other, _, _ = fitted("full")
    other.fit(3 * features, labels)
    gaussians.load_state_dict(other.state_dict())
    assert torch.equal(gaussians.factors(), other.factors())


def test_a_class_of_one_sample_is_drawn_at_its_mean():
    gaussians = ClassGaussians(4)
    gaussians.grow(1)
    gaussians.fit(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(gaussians.sample(5, torch.ones(1)), torch.ones(1, 5, 4), rtol=0, atol=0.06)


def test_the_newest_classes_are_not_shrunk():
    scale = mean_scale(torch.tensor([0, 0, 4, 9]), tasks=10)
    torch.testing.assert_close(scale, torch.tensor([0.91, 0.91, 0.95, 1.0]))


def test_alignment_separates_the_classes_and_is_repeatable():
    gaussians, features, labels = fitted("full")
    heads = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))

    def aligned():
        generator = torch.Generator().manual_seed(0)
        return align_cosine_heads(heads, gaussians, torch.ones(3), 20, 0.1, 40, generator=generator)

    weight = aligned()
    assert torch.equal(weight, aligned())
    before, after = (
        (features @ torch.nn.functional.normalize(w).T).argmax(1) == labels for w in (heads, weight)
    )
    assert after.float().mean() > max(0.7, before.float().mean())


def test_bad_options():
    with pytest.raises(UserError, match="covariance is one of"):
        ClassGaussians(4, "block")
    with pytest.raises(UserError, match="between 1 and 4"):
        ClassGaussians(4, "low_rank", rank=5)


def test_alignment_is_stochastic_gradient_descent_on_scaled_cosines():
    gaussians, _, _ = fitted("full")
    heads = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    scale, epochs, lr, count, decay = torch.tensor([0.9, 0.95, 1.0]), 3, 0.1, 5, 5e-2
    generator = torch.Generator().manual_seed(3)
    weight = torch.nn.Parameter(heads.clone())
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    labels = torch.arange(3).repeat_interleave(count)
    for _ in range(epochs):
        drawn = gaussians.sample(count, scale, generator).flatten(0, 1)
        for part in torch.randperm(len(labels), generator=generator).split(count):
            cosines = F.normalize(drawn[part], dim=-1) @ F.normalize(weight, dim=-1).T
            loss = F.cross_entropy(20 * cosines, labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    generator.manual_seed(3)
    aligned = align_cosine_heads(
        heads, gaussians, scale, epochs, lr, count, weight_decay=decay, generator=generator
    )
    torch.testing.assert_close(aligned, weight.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "low_rank"])
def test_covariances_are_unbiased(covariance):
    """Over n - 1, as torch.cov: with four samples a third more than over n."""
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    gaussians = ClassGaussians(3, covariance, rank=1)
    gaussians.grow(1)
    gaussians.fit(features, torch.zeros(4, dtype=torch.int64))
    expected = torch.cov(features.T)
    spread = gaussians.spread[0]
    if covariance == "full":
        torch.testing.assert_close(spread, expected)
    elif covariance == "diagonal":
        torch.testing.assert_close(spread, expected.diagonal())
    else:
        torch.testing.assert_close(spread.square().sum(1) + gaussians.rest[0], expected.diagonal())
        torch.testing.assert_close(spread.square().sum(), torch.linalg.eigvalsh(expected)[-1])
