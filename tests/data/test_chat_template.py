import pytest

from moe_adapt.data.chat_template import CHAT_TEMPLATES, chat_template
from moe_adapt.data.conversations import encode_conversation, turns_of
from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError
from tests.training.tiny import tiny_tokenizer

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "bye"},
]


@pytest.mark.parametrize("name", [*CHAT_TEMPLATES, "file"])
def test_only_answers_are_learned_and_each_ends(tmp_path, name):
    tokenizer = load_tokenizer(str(tiny_tokenizer(tmp_path / "t")), 64)
    if name == "file":
        name = str(tmp_path / "own.jinja")
        (tmp_path / "own.jinja").write_text(CHAT_TEMPLATES["plain"])
    assert chat_template(tokenizer, name) == tokenizer.chat_template
    example = encode_conversation(tokenizer, turns_of(TURNS, 0), 0)
    learned = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    text = tokenizer.decode(learned)
    assert text.count("</s>") == 2 and "hello" in text and "bye" in text and "hi" not in text
    prompt = tokenizer.apply_chat_template(TURNS[:2], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(example.input_ids).startswith(prompt)


def test_the_tokenizers_own_stays_and_unknown_names_are_told(tmp_path):
    tokenizer = load_tokenizer(str(tiny_tokenizer(tmp_path / "t", chat=True)), 64)
    own = tokenizer.chat_template
    assert chat_template(tokenizer, None) is None and tokenizer.chat_template == own
    with pytest.raises(UserError, match="Did you mean 'plain'"):
        chat_template(tokenizer, "plane")
