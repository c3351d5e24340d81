"""Tiny tokenizers, and a place to run what the documentation shows."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning  # noqa: F401  so that its loggers exist
import pytest
from hypothesis import HealthCheck, settings

from moe_adapt.drift import compiled
from moe_adapt.experts import BANKS
from moe_adapt.routing import AUX_LOSSES, MODIFIERS, SCORERS, SELECTORS
from tests.training.tiny import tiny_tokenizer

#: The same examples on every machine, however slow it is.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def _no_numba() -> bool:
    """Stand for `compiled.available` where numba is not installed."""
    return False


@pytest.fixture(autouse=True)
def compile_no_stream_learners(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """DriftMoE takes its plain path, but in the tests of the compiled one: compiling takes half a minute."""
    if "compiled" not in request.path.parts:
        monkeypatch.setattr(compiled, "available", _no_numba)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    """The folder of a tiny tokenizer."""
    return str(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory) -> str:
    """The folder of a tiny tokenizer with a chat template."""
    return str(tiny_tokenizer(tmp_path_factory.mktemp("chat_tokenizer"), chat=True))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; modules imported from it, and what they registered, are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # they keep the first test's stream
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    for registry in (AUX_LOSSES, BANKS, MODIFIERS, SCORERS, SELECTORS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
