"""Learning rates of the composition benchmark: the best on validation rows, each tried once."""

import json

import pytest

from tests.markdown import REPOSITORY


@pytest.fixture
def best_rate(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks" / "compose"))
    import rates

    return rates.best_rate


def test_the_rate_with_the_best_score_is_taken(best_rate, tmp_path):
    assert (
        best_rate(tmp_path / "chosen.json", (1e-3, 2e-3, 4e-3), {1e-3: 0.5, 2e-3: 0.9, 4e-3: 0.7}.get) == 2e-3
    )


def test_what_was_tried_is_not_tried_again(best_rate, tmp_path):
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps({"0.001": 0.8}))
    tried = []

    def score(rate):
        tried.append(rate)
        return 0.1

    assert best_rate(path, (1e-3, 2e-3), score) == 1e-3
    assert tried == [2e-3]
    assert json.loads(path.read_text()) == {"0.001": 0.8, "0.002": 0.1}
