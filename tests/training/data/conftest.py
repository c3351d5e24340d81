"""A tokenizer for these tests, and a cache folder of their own for what `datasets` writes."""

import datasets
import pytest

from tests.training.tiny import tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    return str(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory) -> str:
    return str(tiny_tokenizer(tmp_path_factory.mktemp("chat_tokenizer"), chat=True))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
