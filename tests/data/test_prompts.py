import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from moe_adapt.data.prompts import (
    IGNORED,
    chat_texts,
    check_template,
    encode_prompts,
    encode_responses,
    join,
    render,
)
from moe_adapt.errors import UserError

tokens = st.lists(st.integers(3, 99), max_size=12)


@given(tokens.filter(bool), tokens.filter(bool), st.integers(2, 30), st.booleans())
def test_join_keeps_the_response_and_the_end_of_the_prompt(prompt, response, max_length, train_on_prompt):
    if len(response) >= max_length:
        with pytest.raises(UserError, match=f"row 7 has a response of {len(response)} tokens"):
            join(prompt, response, max_length, 7)
        return
    example = join(prompt, response, max_length, 7, train_on_prompt)
    head = example.input_ids[: -len(response)]
    assert len(example.input_ids) == min(len(prompt) + len(response), max_length)
    assert head[0] == prompt[0] and head[1:] == prompt[len(prompt) - len(head) + 1 :]
    assert example.input_ids[len(head) :] == response == example.labels[len(head) :]
    assert example.labels[: len(head)] == (head if train_on_prompt else [IGNORED] * len(head))


def test_empty_response():
    with pytest.raises(UserError, match="row 3 has an empty response"):
        join([1, 5], [], 10, 3)


def test_prompt_and_response_are_tokenised_apart(tokenizer):
    """Each side has its own tokens, so that the labels are those of the response, whatever would merge."""
    opened = AutoTokenizer.from_pretrained(tokenizer)
    (prompt,) = encode_prompts(opened, ["a b"], chat=False)
    (response,) = encode_responses(opened, ["c"], end=True)
    example = join(prompt, response, 20, 0)
    assert opened.decode(example.input_ids) == "<s>a bc</s>"
    assert opened.decode([token for token in example.labels if token != IGNORED]) == "c</s>"


def test_an_end_token_that_the_tokenizer_adds_to_the_prompt_is_dropped(tokenizer):
    opened = AutoTokenizer.from_pretrained(tokenizer)
    opened.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert opened("a").input_ids[-1] == 2
    assert encode_prompts(opened, ["a"], chat=False)[0] == opened("a").input_ids[:-1]


def test_a_tokenizer_that_adds_a_space_does_not_double_it(tokenizer):
    opened = AutoTokenizer.from_pretrained(tokenizer)
    plain = encode_responses(opened, [" a b"], end=False)
    opened.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    assert (
        encode_responses(opened, [" a b"], end=False) == plain == encode_responses(opened, ["a b"], end=False)
    )


def test_chat_parts(chat_tokenizer, tokenizer):
    opened = AutoTokenizer.from_pretrained(chat_tokenizer)
    assert chat_texts(opened, "q", "r") == ("<|user|>q</s><|assistant|>", "r</s>")
    assert chat_texts(opened, "q", "r", "be kind")[0] == "<|system|>be kind</s><|user|>q</s><|assistant|>"
    with pytest.raises(UserError, match="has no chat template: set chat to false"):
        chat_texts(AutoTokenizer.from_pretrained(tokenizer), "q", "r")
    opened.chat_template = "{{ messages | length }}{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(UserError, match="changes the prompt once it is answered"):
        chat_texts(opened, "q", "r")


def test_wrong_field_suggests_the_column():
    with pytest.raises(UserError, match=r"field {qestion}, which is no column. Did you mean 'question'\?"):
        check_template("Q: {qestion}", ["question", "answer"])


@pytest.mark.parametrize("template", ["{question", "{question}}", "{}"])
def test_broken_templates(template):
    with pytest.raises(UserError, match=r"is no format string|is no column"):
        check_template(template, ["question"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": None}, "row 4 has no value in column 'a'"),
        ({"a": ["x"]}, "row 4 does not fit the template '{a\\[1\\]}'"),
    ],
)
def test_rows_that_do_not_fit(row, message):
    with pytest.raises(UserError, match=message):
        render("{a[1]}", row, 4)
