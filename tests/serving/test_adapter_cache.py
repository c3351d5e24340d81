"""Few of many adapters in memory: the same answers, loads between LRU's and Belady's, queues that help."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.evaluation.locality import cache_hit_rate
from moe_adapt.serving.adapter_cache import AdapterCache, loads
from moe_adapt.serving.opening import open_model
from tests.serving.models import classifier, text_answering

REQUESTS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40)


def rate(requests, size, policy):
    """Loads by the simulator of experts."""
    names = sorted(set(requests))
    chosen = torch.eye(len(names), dtype=torch.bool)[[names.index(name) for name in requests]]
    return round(len(requests) * (1 - float(cache_hit_rate(chosen, size, policy))))


@given(REQUESTS, st.integers(1, 7), st.integers(0, 40))
def test_loads_are_lrus_belady_s_or_between(requests, size, ahead):
    lru, best = loads(requests, size), loads(requests, size, ahead=len(requests))
    assert lru == rate(requests, size, "lru")
    assert rate(requests, size, "belady") <= best <= loads(requests, size, ahead) <= lru
    if size >= len(set(requests)):
        assert lru == best == len(set(requests))


def test_the_best_rule_is_belady_s_for_what_has_to_be_in_memory_to_be_used():
    """The simulator of experts may use one without keeping it; an adapter has to be loaded to be used."""
    assert (rate("aba", 1, "belady"), loads("aba", 1, ahead=3)) == (2, 3)
    assert (loads("abcabcabc", 2), loads("abcabcabc", 2, ahead=9)) == (9, 6)


@given(REQUESTS, st.integers(1, 5), st.integers(1, 10))
def test_what_is_given_is_what_was_asked_for_and_no_more_than_fit(requests, size, ahead):
    inside = set()

    def load(name):
        inside.add(name)
        return name

    cache = AdapterCache(load, size, lambda name, item: inside.discard(name))
    for place, name in enumerate(requests):
        waiting = requests[place + 1 : place + 1 + ahead]
        assert cache.get(name, waiting) == name
        cache.prefetch(waiting)
        assert len(cache) == len(inside) <= size
    assert cache.hits + cache.loaded >= len(requests)


def test_prefetching_makes_the_next_requests_hits():
    cache = AdapterCache(str.upper, size=3)
    for name in ("a", "b"):
        cache.get(name)
    assert cache.prefetch(["b", "c", "b", "d", "a"]) == ["c", "d"]
    assert "a" not in cache and all(name in cache for name in "bcd")
    for name in ("b", "c", "b", "d"):
        cache.get(name)
    assert cache.hits == 4 and cache.loaded == 4


def test_answers_are_those_of_all_loaded(tmp_path):
    folders = {f"c{seed}": classifier(tmp_path / f"c{seed}", seed) for seed in range(3)}
    base = str(tmp_path / "bert")
    whole, small = (open_model(folders["c0"], base, name="c0") for _ in range(2))
    for name in ("c1", "c2"):
        whole.add(name, folders[name], text_answering(tmp_path / "bert"))

    def load(name):
        small.add(name, folders[name], text_answering(tmp_path / "bert"))

    def unload(name, _):
        small.model.delete_adapter(name)
        del small.adapters[name]

    cache = AdapterCache(load, 1, unload)
    for text, name in [("red", "c1"), ("blue", "c2"), ("red", "c2"), ("green", "c1")]:
        cache.get(name)
        assert len(small.adapters) == 2
        assert small([text], 3, adapters=[name]) == whole([text], 3, adapters=[name])
    assert cache.loaded == 3


def test_bad_input():
    with pytest.raises(UserError, match="at least one adapter"):
        AdapterCache(str.upper, 0)
    with pytest.raises(UserError, match="no or more"):
        loads(["a"], 1, -1)
