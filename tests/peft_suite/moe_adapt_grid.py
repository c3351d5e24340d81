"""A pytest plugin that puts our configuration into the grids of PEFT's own tests.

PEFT's tests are parametrised by `config_cls` and `config_kwargs`. Here every such grid is replaced by ours,
so that its checks run on the routed adapter; tests without the grid are left out. The tests themselves come
from a checkout or source distribution of PEFT and are no part of this project:

    nox -s peft_suite -- PATH_TO_PEFT

`refusals.txt` beside this file lists what is refused on purpose, a line each: a regular expression on the
name of the test, a colon, the reason. A test on the list that passes is no failure; one that is not on it and
fails, is.
"""

import re
from pathlib import Path
from typing import Any

import pytest

import moe_adapt.tuner
from moe_adapt.tuner import RoutedLoraConfig

COLUMNS = ("test_name", "model_id", "config_cls", "config_kwargs")
GRID: list[tuple[str, str, type, dict[str, Any]]] = [
    (f"{name} {model}", model, RoutedLoraConfig, {"r": 4, "num_experts": 3, "dropout": 0.0, **options})
    for name, options in {
        "routed top_k": {"method": "top_k"},
        "routed dynmole": {"method": "dynmole"},
        "routed constant": {"method": "uniform_dense"},
        "routed single": {"method": "lora", "num_experts": 1},
    }.items()
    for model, targets in {"MLP": ["lin0"], "EmbConv1D": ["conv1d"], "Conv2d": ["conv2d"]}.items()
    for options in [options | {"target_modules": targets}]
]
REFUSALS = [
    (re.compile(pattern), reason.strip())
    for line in (Path(__file__).parent / "refusals.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
    for pattern, _, reason in [line.partition(":")]
]


def _grid(names: list[str]) -> list[tuple[Any, ...]]:
    rows = [
        dict(zip(("test_name", "model_id", "config_cls", "config_kwargs"), row, strict=True)) for row in GRID
    ]
    return [tuple(row[name] for name in names) for row in rows]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: Any) -> None:
    """Replace every grid over configurations by ours."""
    plain = metafunc.parametrize

    def parametrize(names: Any, values: Any, **options: Any) -> None:
        wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        if "config_kwargs" in wanted and set(wanted) <= {
            "test_name",
            "model_id",
            "config_cls",
            "config_kwargs",
        }:
            values = _grid(wanted)
        plain(names, values, **options)

    metafunc.parametrize = parametrize


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the tests of the grid; mark what is refused on purpose."""
    kept = []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("config_cls") is not RoutedLoraConfig:
            continue
        for pattern, reason in REFUSALS:
            if pattern.search(item.name):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
        kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


assert moe_adapt.tuner  # importing it registers the adapter type
