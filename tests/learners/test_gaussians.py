"""Class Gaussians: moments of what is drawn, and the alignment of heads on it."""

import pytest
import torch

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
    first = gaussians.factors()
    assert gaussians.factors() is first
    gaussians.fit(2 * features, labels)
    torch.testing.assert_close(gaussians.factors(), 2 * first, rtol=1e-3, atol=1e-4)


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
