"""Programs of different benchmarks have modules of the same names: each test imports its own."""

import sys

import pytest

from tests.markdown import REPOSITORY


@pytest.fixture(autouse=True)
def own_modules():
    """Forget the modules of benchmarks after each test."""
    yield
    home = str(REPOSITORY / "benchmarks")
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(home):
            del sys.modules[name]
