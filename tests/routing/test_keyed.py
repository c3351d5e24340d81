"""The keyed selector: by id, with a shared expert, in training and at test."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import Logits, RouteContext
from moe_adapt.routing.selectors import HardSoftSelector, KeyedSelector


def decide(selector, experts=3, domains=None, training=False, tokens=2):
    samples = 2
    z = torch.zeros(samples * tokens, experts)
    ids = None if domains is None else torch.tensor(domains)
    return selector(Logits(z, z), RouteContext(training=training, domain_ids=ids))


@pytest.mark.parametrize("training", [False, True])
def test_own_expert_and_the_shared_one(training):
    gates = decide(KeyedSelector(), domains=[1, -1], training=training).gates
    assert gates.tolist() == [[0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert decide(KeyedSelector(), training=training).gates.tolist() == [[0, 0, 1]] * 4


def test_without_a_shared_expert_the_base_answers():
    gates = decide(KeyedSelector(shared=False), domains=[2, -1]).gates
    assert gates.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_a_key_without_expert_is_told():
    with pytest.raises(UserError, match="domain 2 has no expert"):
        decide(KeyedSelector(), domains=[0, 2])
    with pytest.raises(UserError, match="leave none for a key"):
        KeyedSelector().check(1)


def test_a_known_domain_wins_at_test_for_lora_mixer_too():
    told = decide(HardSoftSelector(k=2), domains=[1, -1]).gates
    assert told[:2].tolist() == [[0, 1, 0]] * 2 and (told[2:] > 0).sum(1).tolist() == [2, 2]
    for selector in (HardSoftSelector(k=2, known_at_test=False), HardSoftSelector(k=2, hard_until=0.0)):
        assert (decide(selector, domains=[1, 0]).gates > 0).sum(1).tolist() == [2] * 4
