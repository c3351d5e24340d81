"""Groups in matrices whose answer is known."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from moe_adapt.errors import UserError
from moe_adapt.training.groups import Grouping, agreement, cluster_losses, distances_of, silhouettes


def planted(sizes: list[int], seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return losses with planted groups, and the group of each member, in a random order."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    losses = 0.3 + apart * (truth[:, None] != truth) + 0.1 * rng.random((len(truth), len(truth)))
    np.fill_diagonal(losses, 0.05)
    return losses + rng.random((len(truth), 1)), truth  # some members' rows are harder


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [2, 3, 8], [1, 5, 6], [8, 8]])
def test_planted_groups_are_found_with_their_number(sizes):
    losses, truth = planted(sizes)
    found = cluster_losses(losses)
    assert found.count == len(sizes) and agreement(found.labels, truth) == 1.0


def test_the_parts_agree_with_scikit_learn():
    losses, truth = planted([3, 4, 5], seed=3, apart=0.05)
    distances = distances_of(losses)
    for count in range(2, 11):
        found = cluster_losses(losses, count)
        theirs = AgglomerativeClustering(count, metric="precomputed", linkage="average").fit(distances)
        assert adjusted_rand_score(theirs.labels_, found.labels) == 1.0
        samples = silhouette_samples(distances, found.labels, metric="precomputed")
        np.testing.assert_allclose(silhouettes(distances, found.labels), samples, atol=1e-12)
        assert found.silhouettes[count] == pytest.approx(samples.mean())
        assert agreement(found.labels, truth) == pytest.approx(adjusted_rand_score(truth, found.labels))


def test_the_order_of_members_does_not_matter():
    losses, _ = planted([3, 4, 5], seed=1)
    order = np.random.default_rng(5).permutation(len(losses))
    moved = cluster_losses(losses[np.ix_(order, order)])
    assert agreement(moved.labels, cluster_losses(losses).labels[order]) == 1.0


def test_groups_are_numbered_by_their_first_members():
    losses, _ = planted([3, 3, 3], seed=2)
    labels = cluster_losses(losses).labels
    firsts = [list(labels).index(number) for number in range(3)]
    assert firsts == sorted(firsts)


def test_a_number_that_is_asked_for_and_what_cannot_be():
    losses, _ = planted([2, 2])
    assert cluster_losses(losses, 1).labels.tolist() == [0, 0, 0, 0]
    assert cluster_losses(losses, 4).labels.tolist() == [0, 1, 2, 3]
    for wrong, count, said in (
        (losses, 5, "1 to 4 groups"),
        (losses[:, :3], None, "square"),
        (losses[:1, :1], None, "at least two"),
        (losses[:2, :2], None, "say 1 or 2"),
        (losses * np.nan, None, "not finite"),
    ):
        with pytest.raises(UserError, match=said):
            cluster_losses(wrong, count)


def test_a_grouping_says_what_it_found(tmp_path):
    losses, truth = planted([2, 3, 4])
    names = [f"t{number}" for number in range(9)]
    known = {name: f"policy {group}" for name, group in zip(names, truth, strict=True)}
    found = Grouping.find("tenant", names, losses, truth=known)
    assert found.adjusted_rand == 1.0 and list(found.groups()) == ["group1", "group2", "group3"]
    assert all(len({known[name] for name in own}) == 1 for own in found.groups().values())
    assert "9 values of 'tenant' make 3 groups" in found.verdict() and "stand out" not in found.verdict()


def without_groups(seed: int, size: int = 12) -> np.ndarray:
    """Return losses of members some of whom are served worse by everybody, and some serve everybody worse."""
    rng = np.random.default_rng(seed)
    losses = 1 + rng.random((size, size)) + rng.random((size, 1)) + 2 * rng.random((1, size))
    np.fill_diagonal(losses, 0.1)
    return losses


def test_members_without_groups_are_one_group_from_eight_on():
    found = cluster_losses(without_groups(0, size=8))
    assert found.count == 1 and found.p_value > 0.05
    fewer = cluster_losses(without_groups(0, size=7))
    assert fewer.count > 1 and fewer.p_value is None


def test_one_group_is_said_with_its_reason():
    names = [f"t{number}" for number in range(12)]
    found = Grouping.find("tenant", names, without_groups(0))
    assert found.count == 1 and found.p_value > 0.05
    assert "make one group" in found.verdict() and "chance" in found.verdict()
    few = Grouping.find("tenant", names[:7], without_groups(0, size=7))
    assert "do not stand out" in few.verdict()


def test_planted_groups_exceed_chance():
    losses, truth = planted([4, 4, 4, 4], apart=0.3)
    found = cluster_losses(losses)
    assert agreement(found.labels, truth) == 1.0
    assert found.p_value == 0.005


def test_noisy_groups_are_found_though_pairs_by_chance_have_larger_silhouettes():
    alike = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = np.repeat(np.arange(4), 4)
        losses = 1.1 + 1.2 * (truth[:, None] != truth) + 0.6 * rng.standard_normal((16, 16))
        np.fill_diagonal(losses, 0.05)
        alike.append(agreement(cluster_losses(losses).labels, truth))
    assert np.mean(alike) > 0.6 and min(alike) > 0
