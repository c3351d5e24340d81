"""The replay buffer is a uniform sample of all that was offered."""

from collections import Counter

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners.reservoir import ReservoirBuffer, join

#: Beyond it a chi-square value with that many degrees of freedom has a probability of 0.001.
CRITICAL = {3: 16.27, 9: 27.88}


def offered(capacity, samples, batch=1):
    buffer = ReservoirBuffer(capacity)
    for part in torch.arange(samples).split(batch):
        buffer.add({"number": part})
    return buffer


@pytest.mark.parametrize("batch", [1, 7])
def test_every_offer_is_as_likely_to_be_kept(batch):
    """Two of four, 1,500 times: the first offers and the last are kept equally often."""
    torch.manual_seed(0)
    kept = Counter(n for _ in range(1500) for n in offered(2, 4, batch).columns["number"].tolist())
    expected = 1500 * 2 / 4
    chi_square = sum((kept[number] - expected) ** 2 / expected for number in range(4))
    assert chi_square < CRITICAL[3]


def test_ten_thousand_offers_are_kept_evenly():
    torch.manual_seed(0)
    kept = offered(1000, 10_000, batch=64).columns["number"]
    assert len(kept) == len(set(kept.tolist())) == 1000
    tenths = torch.bincount(kept // 1000, minlength=10).float()
    assert ((tenths - 100) ** 2 / 100).sum() < CRITICAL[9]


def test_places_are_replaced_alike():
    """What is kept of the first offers does not sit in particular places."""
    torch.manual_seed(0)
    stays = sum(offered(4, 8).columns["number"] == torch.arange(4) for _ in range(800))
    expected = 800 * 4 / 8
    assert (((stays - expected) ** 2) / expected).sum() < CRITICAL[3]


def test_it_fills_in_order_and_counts():
    buffer = offered(5, 3)
    assert buffer.columns["number"].tolist() == [0, 1, 2]
    assert (len(buffer), int(buffer.seen), buffer.nbytes()) == (3, 3, 24)
    buffer = offered(5, 40)
    assert (len(buffer), int(buffer.seen)) == (5, 40)


def test_rows_stay_together():
    torch.manual_seed(0)
    buffer = ReservoirBuffer(10)
    for part in torch.arange(100.0).split(9):
        buffer.add({"x": torch.stack([part, 2 * part], 1), "labels": part.long()})
    drawn = buffer.draw(10)
    assert torch.equal(drawn["x"][:, 0].long(), drawn["labels"])
    assert torch.equal(drawn["x"][:, 1], 2 * drawn["x"][:, 0])


def test_a_draw_has_nothing_twice_and_at_most_what_there_is():
    buffer = offered(6, 6)
    assert sorted(buffer.draw(9)["number"].tolist()) == list(range(6))
    torch.manual_seed(0)
    counts = Counter(n for _ in range(900) for n in buffer.draw(2)["number"].tolist())
    assert all(abs(counts[n] - 300) < 60 for n in range(6))


def test_logits_of_fewer_classes_are_filled_with_nan_and_tokens_with_zeros():
    buffer = ReservoirBuffer(4)
    buffer.add({"stored_logits": torch.ones(1, 2), "input_ids": torch.ones(1, 2, dtype=torch.int64)})
    buffer.add({"stored_logits": torch.ones(1, 3), "input_ids": torch.ones(1, 3, dtype=torch.int64)})
    assert buffer.columns["stored_logits"].isnan().tolist() == [[False, False, True], [False] * 3]
    assert buffer.columns["input_ids"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_draw_is_as_long_as_its_longest_sequence():
    buffer = ReservoirBuffer(2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    buffer.add({"input_ids": 7 * mask, "attention_mask": mask, "labels": torch.tensor([0, 1])})
    drawn = buffer.draw(2)
    assert drawn["input_ids"].shape == drawn["attention_mask"].shape == (2, 2)


def test_batches_are_joined_in_order_over_what_all_have():
    one = {"ids": torch.ones(1, 2), "labels": torch.tensor([3]), "own": torch.ones(1)}
    joined = join(one, {"ids": 2 * torch.ones(2, 3), "labels": torch.tensor([4, 5])})
    assert joined.keys() == {"ids", "labels"}
    assert joined["labels"].tolist() == [3, 4, 5]
    assert joined["ids"].tolist() == [[1, 1, 0], [2, 2, 2], [2, 2, 2]]


def test_no_room_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        ReservoirBuffer(0)
