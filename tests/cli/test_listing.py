"""``moe-adapt list NAME``, and what it shows: papers and options of every part."""

import re

import pytest

from moe_adapt.cli.described import REGISTRIES, registry_of
from moe_adapt.cli.options import constructor_options


def test_list_name_shows_its_paper_and_options(moe_adapt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = moe_adapt("list", "dynmole", "Ewc")
    assert result.code == 0, result.err
    for expected in ("configuration routed_lora/dynmole", "selector dynmole", "learner ewc"):
        assert expected in result.out
    assert "reference: DynMoLE, arXiv 2504.00661" in result.out
    assert (
        "auxiliary loss load_balance: Switch Transformer, Fedus et al. 2021, arXiv 2101.03961" in result.out
    )
    assert "Higher: less forgetting, slower learning of new tasks." in result.out
    assert "weight_decay" in result.out, "options that ** hands on are shown"


@pytest.mark.parametrize("section", REGISTRIES)
def test_every_part_says_where_it_is_from(section):
    registry = registry_of(section)
    for name in registry:
        if registry.get(name).__module__.startswith("moe_adapt."):
            assert re.search(r"arXiv \d{4}\.\d{5}|^no paper: ", registry.reference(name)), name


def test_options_say_what_a_larger_value_does():
    classes = {cls for registry in map(registry_of, REGISTRIES) for cls in map(registry.get, registry)}
    told = [option for cls in classes for option in constructor_options(cls) if "Higher: " in option.meaning]
    assert len(told) >= 30
