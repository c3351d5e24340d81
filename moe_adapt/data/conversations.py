"""Conversations of many turns: OpenAI's ``messages``, ShareGPT's ``conversations``; which tokens are learned.

Only what the assistant says is learned. A tokenizer whose chat template marks it (``{% generation %}``) gives
the mask itself. Else a conversation is rendered turn by turn, and what an assistant's turn adds to the text
before it is learned, its closing marker included; pieces are tokenised apart, as prompts and responses are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from moe_adapt.data.prompts import IGNORED, Example
from moe_adapt.errors import UserError

__all__ = ["COLUMNS", "conversation_column", "encode_conversation", "turns_of"]

#: Columns that hold conversations, in the order in which they are looked for.
COLUMNS = ("messages", "conversations")

#: ShareGPT's names of those who speak.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_ROLES = ("system", "developer", "user", "assistant", "tool")

Turn = dict[str, Any]


def conversation_column(columns: Sequence[str]) -> str | None:
    """Return the column that holds conversations, if there is one.

    >>> conversation_column(["id", "conversations"])
    'conversations'
    """
    return next((name for name in COLUMNS if name in columns), None)


def turns_of(value: Any, number: int) -> list[Turn]:
    """Return the turns of a conversation in OpenAI's form.

    Args:
        value: A list of ``role`` and ``content``, or of ``from`` and ``value``.
        number: The row's number, for messages.

    Raises:
        UserError: If it is neither, somebody unknown speaks, or the assistant says nothing.

    >>> turns_of([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], 0)[1]
    {'role': 'assistant', 'content': 'hello'}
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in value):
        raise UserError(
            f"row {number} holds no conversation: expected a list of turns with role and content."
        )
    found = []
    for turn in value:
        if "from" in turn:
            role = _SPEAKERS.get(str(turn["from"]))
            said: Turn = {"role": role, "content": turn.get("value")}
        else:
            role = turn.get("role")
            said = {key: item for key, item in turn.items() if item is not None or key == "content"}
        if role not in _ROLES:
            speaker = turn.get("from", turn.get("role"))
            raise UserError(
                f"row {number} has a turn of {speaker!r}: expected one of {', '.join(_ROLES)} (or ShareGPT's "
                "human, gpt, system, tool)."
            )
        if not isinstance(said.get("content"), str) and not said.get("tool_calls"):
            raise UserError(f"row {number} has a turn of the {role} without text in content.")
        found.append({**said, "content": said.get("content") or ""})
    if not any(turn["role"] == "assistant" for turn in found):
        raise UserError(f"row {number} has no turn of the assistant, so there is nothing to learn.")
    return found


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], number: int, tools: Any = None
) -> Example:
    """Return the tokens of a conversation; what others than the assistant say is not learned.

    Args:
        tokenizer: A tokeniser with a chat template.
        turns: What `turns_of` returned.
        number: The row's number, for messages.
        tools: Descriptions of tools that the template shows.

    Raises:
        UserError: If the tokeniser has no chat template, or one that changes earlier turns.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UserError(
            f"the tokeniser {tokenizer.name_or_path!r} has no chat template, which conversations need: give "
            "--data.chat_template plain (or chatml, or a Jinja file), or take an instruct model."
        )
    if "generation" in str(template) and "{%" in str(template) and "endgeneration" in str(template):
        return _masked(tokenizer, turns, number, tools)
    pieces: list[tuple[str, bool]] = []
    before = ""
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        head = _render(tokenizer, turns[:place], tools, prompt=True)
        whole = _render(tokenizer, turns[: place + 1], tools, prompt=False)
        if not head.startswith(before) or not whole.startswith(head):
            raise UserError(
                f"row {number}: the chat template of {tokenizer.name_or_path!r} changes earlier "
                f"turns once they "
                "are answered, so what the assistant says cannot be told apart; give one turn per "
                "row as prompt "
                "and response."
            )
        pieces += [(head[len(before) :], False), (whole[len(head) :], True)]
        before = whole
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in pieces:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids += tokens
        labels += tokens if learned else [IGNORED] * len(tokens)
    return Example(ids, labels)


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], tools: Any, prompt: bool) -> str:
    given = {"tools": tools} if tools else {}
    return str(
        tokenizer.apply_chat_template(list(turns), add_generation_prompt=prompt, tokenize=False, **given)
    )


def _masked(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], number: int, tools: Any) -> Example:
    given = {"tools": tools} if tools else {}
    found: Any = tokenizer.apply_chat_template(
        list(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **given
    )
    ids, mask = list(found["input_ids"]), list(found["assistant_masks"])
    if not any(mask):
        raise UserError(f"row {number}: the chat template marks nothing that the assistant says.")
    return Example(ids, [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)])
