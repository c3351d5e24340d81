"""The encoder of the composition benchmark: features of every block, as the whole model has them."""

import torch
from transformers import BertConfig, BertModel

from moe_adapt.hub.composition.base import text_features
from tests.hub.composition.kitchen import WORDS, tokenizer
from tests.markdown import REPOSITORY


def test_features_from_the_middle_up_are_those_of_the_whole_model(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks" / "compose"))
    from encoder import Halves
    from tasks import Row

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=2
    )
    BertModel(config).save_pretrained(tmp_path)
    words = tokenizer()
    words.padding_side = "right"
    words.save_pretrained(tmp_path)
    halves = Halves(tmp_path, 16)
    texts = [text for own in WORDS.values() for text in own]
    data = halves.cache([Row(text, ("pay", "won"), 0, "bank") for text in texts])
    found = data.by_block(halves.base, size=4)
    expected = text_features(halves.base, halves.tokenizer, texts, 16, [3, 4, 5, 6])
    assert len(found) == 4
    for own, whole in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(own, whole, atol=1e-5, rtol=1e-4)
