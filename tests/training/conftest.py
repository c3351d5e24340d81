"""Tiny models, saved once per session."""

import pytest

from tests.training.tiny import tiny_bert, tiny_llama


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    return str(tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("llama")))
