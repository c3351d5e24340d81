r"""Prompt templates, and which tokens of an example are learned.

A template is a Python format string over the columns of a table, such as ``"Question: {question}\nAnswer:"``.
Prompt and response are tokenised apart and their tokens joined: no token straddles the boundary, so the
labels cover exactly the response, and the prompt's tokens are the same in training and in generation. The
price is that the tokens at the boundary may differ from those of the joined text; put the space that
separates them at the head of the response (``" {answer}"``), which is where most tokenisers keep it.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from moe_adapt.errors import UserError, did_you_mean

__all__ = [
    "IGNORED",
    "Example",
    "chat_texts",
    "check_template",
    "encode_prompts",
    "encode_responses",
    "join",
    "render",
    "template_fields",
]

#: The label of a token that is not learned.
IGNORED = -100

#: How tokenisers write a space at the head of a token.
_SPACES = ("▁", "Ġ")


@dataclass(frozen=True)
class Example:
    """One token sequence.

    Attributes:
        input_ids: Token numbers [S].
        labels: The same, or `IGNORED` where nothing is learned [S].
        domain: Number of its domain; None if rows have no domain.
    """

    input_ids: list[int]
    labels: list[int]
    domain: int | None = None


def template_fields(template: str) -> list[str]:
    """Return the columns that a template names, in order.

    Raises:
        UserError: If its braces do not match.

    >>> template_fields("{question} A: {choices[0]}")
    ['question', 'choices']
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(
            f"the template {template!r} is no format string ({error}): write a literal brace twice."
        ) from error
    return [field.split("[")[0].split(".")[0] for field in fields]


def check_template(template: str, columns: Sequence[str]) -> None:
    """Check that every field of a template is a column.

    Raises:
        UserError: If one is not; the message lists the columns.
    """
    for field in template_fields(template):
        if field not in columns:
            raise UserError(
                f"the template {template!r} has the field {{{field}}}, which is no column."
                f"{did_you_mean(field, columns)} Columns: {', '.join(columns)}."
            )


def render(template: str, row: Mapping[str, Any], number: int) -> str:
    """Fill a template with a row.

    Args:
        template: The format string.
        row: Value of every column.
        number: The row's number, for the message.

    Raises:
        UserError: If the row has no value for a field, or not of the shape that the template needs.

    >>> render("{a} and {b[1]}", {"a": 1, "b": [2, 3]}, number=0)
    '1 and 3'
    """
    for field in template_fields(template):
        if row[field] is None:
            raise UserError(
                f"row {number} has no value in column {field!r}, which the template {template!r} needs."
            )
    try:
        return template.format(**row)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"row {number} does not fit the template {template!r}: {error}.") from error


def chat_texts(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, system: str | None = None
) -> tuple[str, str]:
    """Return prompt and response in the tokeniser's chat format, the response with its closing marker.

    Args:
        tokenizer: A tokeniser with a chat template.
        prompt: What the user says.
        response: What the assistant answers.
        system: What the system says first.

    Raises:
        UserError: If the tokeniser has no chat template, or one that renders the prompt differently once
            there is an answer, so that the response cannot be told apart.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokeniser {tokenizer.name_or_path!r} has no chat template: set chat to false, give "
            "--data.chat_template plain (or chatml, or a Jinja file), or take an instruct model."
        )
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    head = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    answered = [*messages, {"role": "assistant", "content": response}]
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    if not whole.startswith(head):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} changes the prompt once it is answered, so the "
            "response cannot be masked: set chat to false and write the format as a template."
        )
    return head, whole[len(head) :]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], chat: bool) -> list[list[int]]:
    """Return the tokens of the prompts, with what the tokeniser puts at the start and nothing at the end.

    Args:
        tokenizer: The tokeniser.
        prompts: The texts.
        chat: Whether the texts are in chat format, which holds the special tokens already.
    """
    encoded = tokenizer(list(prompts), add_special_tokens=not chat)["input_ids"]
    end = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return [ids[:-1] if not chat and ids and ids[-1] in end else ids for ids in encoded]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], end: bool
) -> list[list[int]]:
    """Return the tokens of the responses without special tokens, but for the end of text if `end`.

    Some tokenisers (SentencePiece) put a space before any text: from them a response that begins with a space
    gets that one, not two.
    """
    first = tokenizer.tokenize("a")[0]
    if first.startswith(_SPACES):
        responses = [response.removeprefix(" ") for response in responses]
    encoded = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] if end else ids for ids in encoded]


def join(
    prompt: list[int], response: list[int], max_length: int, number: int, train_on_prompt: bool = False
) -> Example:
    """Join prompt and response into one example of at most `max_length` tokens.

    A prompt that is too long loses tokens after its first one (the start of text), so that its end, next to
    the response, remains. The response is never cut.

    Args:
        prompt: Tokens of the prompt.
        response: Tokens of the response.
        max_length: Most tokens of the two together.
        number: The row's number, for the message.
        train_on_prompt: Whether the prompt is learned as well.

    Raises:
        UserError: If the response is empty, or leaves no room for any prompt.

    >>> join([1, 5, 6, 7], [8, 2], max_length=4, number=0)
    Example(input_ids=[1, 7, 8, 2], labels=[-100, -100, 8, 2], domain=None)
    """
    if not response:
        raise UserError(f"row {number} has an empty response: there is nothing to learn or to score.")
    room = max_length - len(response)
    if room < 1:
        raise UserError(
            f"row {number} has a response of {len(response)} tokens, which leaves no room for a prompt "
            f"within max_length {max_length}: raise max_length or shorten the response."
        )
    if len(prompt) > room:
        prompt = prompt[:1] + prompt[len(prompt) - room + 1 :]
    ids = prompt + response
    return Example(ids, list(ids) if train_on_prompt else [IGNORED] * len(prompt) + response)
