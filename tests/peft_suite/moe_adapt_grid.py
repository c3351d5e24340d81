"""A pytest plugin that puts our configuration into the grids of PEFT's own tests.

PEFT's tests are parametrised by `config_cls`, `config_kwargs` and `model_id`. Here every such grid is
replaced by ours, so that its checks run on the routed adapter; tests without the grid, and those of prompt
learning, are left out. Models of the Hub are replaced by tiny ones with random weights, and nothing asks the
network. The tests themselves come from a checkout or source distribution of PEFT and are no part of this
project:

    nox -s peft_suite -- PATH_TO_PEFT

`refusals.txt` beside this file lists what is refused on purpose, a line each: a regular expression on the
name of the test, a colon, the reason. A test on the list that passes is no failure; one that is not on it and
fails, is.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from moe_adapt_bases import BASES, folder_of

from moe_adapt.tuner import RoutedLoraConfig

METHODS: dict[str, dict[str, Any]] = {
    "top_k": {"method": "top_k"},
    "dynmole": {"method": "dynmole"},
    "constant": {"method": "uniform_dense"},
    "single": {"method": "lora", "num_experts": 1},
    "film": {"method": "film"},
    "slices": {"method": "slices", "r": 6},
    "chain": {"method": "chain"},
    "atoms": {"method": "atoms", "num_experts": 4, "r": 1, "selector": {"name": "product_top_k", "k": 2}},
    "pool": {"method": "unipool"},
}
#: Other kinds of experts, and experts that layers share; they are tried on the first model alone.
KINDS = ("film", "slices", "chain", "atoms", "pool")
#: Models of `test_custom_models.py` and the layers of them that get experts.
CUSTOM = {"MLP": ["lin0"], "EmbConv1D": ["conv1d"], "Conv2d": ["conv2d"]}
#: Methods that are tried on the models of transformers.
ON_TRANSFORMERS = ("top_k", "constant")
COLUMNS = {"test_name", "model_id", "config_cls", "config_kwargs"}
REFUSALS = [
    (re.compile(pattern), reason.strip())
    for line in (Path(__file__).parent / "refusals.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
    for pattern, _, reason in [line.partition(": ")]
]


def _settings(method: str, **more: Any) -> dict[str, Any]:
    return {"r": 4, "num_experts": 3, "dropout": 0.0, **METHODS[method], **more}


def _custom_grid(names: list[str]) -> tuple[list[tuple[Any, ...]], list[str]]:
    rows, ids = [], []
    for method in METHODS:
        models = dict(list(CUSTOM.items())[:1]) if method in KINDS else CUSTOM
        for model, targets in models.items():
            values = {
                "test_name": f"routed {method} {model}",
                "model_id": model,
                "config_cls": RoutedLoraConfig,
                "config_kwargs": _settings(method, target_modules=targets),
            }
            rows.append(tuple(values[name] for name in names))
            ids.append(f"routed {method} {model}")
    return rows, ids


def _replaced(names: list[str], loader: str | None) -> tuple[list[Any], list[str]] | None:
    """Return values and names of a grid of ours for these parameters, or None if it is none of PEFT's grids.

    Args:
        names: Parameters of the grid.
        loader: Class that the tests load models of transformers with; None for other tests.
    """
    if names == ["config_class", "mandatory_kwargs"]:
        return [(RoutedLoraConfig, {})], ["routed"]
    if names == ["config_cls"]:
        return [RoutedLoraConfig], ["routed"]
    if names == ["model_id"] and loader:
        models = BASES[loader][1]
        return [folder_of(model) for model in models], models
    if loader and set(names) == {"config_cls", "config_kwargs"}:
        kwargs = [_settings(method, r=2, task_type=BASES[loader][0]) for method in ON_TRANSFORMERS]
        return [(RoutedLoraConfig, values) for values in kwargs], [f"routed {m}" for m in ON_TRANSFORMERS]
    if "config_kwargs" in names and set(names) <= COLUMNS:
        return _custom_grid(names)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: Any) -> None:
    """Replace every grid over configurations or models by ours."""
    if "prompt" in metafunc.function.__name__:
        return
    plain = metafunc.parametrize
    loader = getattr(getattr(metafunc.cls, "transformers_class", None), "__name__", None)
    loader = loader if loader in BASES else None

    def parametrize(names: Any, values: Any, **options: Any) -> None:
        wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        ours = _replaced(wanted, loader)
        if ours is not None:
            values, options["ids"] = ours
        plain(names, values, **options)

    metafunc.parametrize = parametrize


@contextmanager
def _offline(model_id: str) -> Iterator[None]:
    yield


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the tests of the grid; mark what is refused on purpose; let nothing ask the Hub."""
    kept = []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if RoutedLoraConfig not in (parameters.get("config_cls"), parameters.get("config_class")):
            continue
        for pattern, reason in REFUSALS:
            if pattern.search(item.name):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
        kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for module in list(sys.modules.values()):
        if getattr(module, "hub_online_once", None) is not None:
            module.hub_online_once = _offline  # type: ignore[attr-defined]
