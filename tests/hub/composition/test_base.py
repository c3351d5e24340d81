"""The base of a composed adapter: by alias, and told if it cannot be had."""

import pytest

from moe_adapt.data import hub_access
from moe_adapt.data.packages import installed_models
from moe_adapt.errors import UserError
from moe_adapt.hub.composition.base import open_base, open_tokenizer, text_features


def test_an_installed_model_is_a_base_by_its_alias():
    if "minilm" not in installed_models():
        pytest.skip("needs the encoder of the extra 'demo'")
    features = text_features(open_base("minilm", None), open_tokenizer("minilm"), ["a text", "b"], 16, [3])
    assert features[3].shape == (2, 384)


@pytest.mark.parametrize("opened", [open_tokenizer, lambda name: open_base(name, None)])
def test_a_model_that_is_not_here_is_told_with_those_that_are(monkeypatch, opened):
    monkeypatch.setattr(hub_access, "hub_answers", lambda: False)
    with pytest.raises(UserError, match="is no folder and not in the cache"):
        opened("somebody/no-such-model")
