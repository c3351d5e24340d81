"""Rows of a table to token sequences: prompts with responses, questions with choices, conversations.

The encoder has no state but its options, so that a row gives the same tokens whether all rows are encoded at
the start or each when its batch comes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from moe_adapt.data.conversations import encode_conversation, turns_of
from moe_adapt.data.prompts import (
    IGNORED,
    Example,
    chat_texts,
    encode_prompts,
    encode_responses,
    join,
    render,
)
from moe_adapt.data.questions import Question, right_choice
from moe_adapt.errors import UserError

__all__ = ["DOMAIN", "Encoded", "RowEncoder"]

#: Key under which a row keeps the number of its domain.
DOMAIN = "\0domain"

Row = Mapping[str, Any]


@dataclass
class Encoded:
    """Encoded rows.

    Attributes:
        items: The rows that are kept.
        long: How many rows were too long.
    """

    items: list[Any]
    long: int = 0


@dataclass
class RowEncoder:
    """Encodes rows with one tokenizer and one set of templates.

    Attributes:
        tokenizer: The tokenizer.
        prompt: Template of the prompt.
        response: Template of the response.
        choices: Column of the list of choices, or one template per choice; None for none.
        answer: Column of the right choice.
        chat: Whether prompt and response go into the tokenizer's chat format.
        system: What the system says first in chat format.
        max_length: Most tokens of a sequence.
        too_long: What becomes of a row that is longer.
        conversation: Column of conversations; None where the templates apply.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: str
    response: str
    choices: str | list[str] | None
    answer: str | None
    chat: bool
    system: str | None
    max_length: int
    too_long: Literal["error", "truncate", "drop"]
    conversation: str | None = None

    def encode(
        self, rows: Sequence[Row], numbers: Sequence[int], train_on_prompt: bool, every_choice: bool
    ) -> Encoded:
        """Return rows as `Example`, or as `Question` if every choice is wanted.

        Args:
            rows: The rows.
            numbers: Their numbers, for messages.
            train_on_prompt: Whether prompts are learned as well.
            every_choice: Whether a row with choices becomes a question.

        Raises:
            UserError: If a row does not fit the templates, is no conversation, or is too long.
        """
        if self.conversation is not None:
            return self.conversations(rows, numbers)
        if self.choices is not None and every_choice:
            return self.questions(rows, numbers)
        return self.examples(rows, numbers, train_on_prompt)

    def conversations(self, rows: Sequence[Row], numbers: Sequence[int]) -> Encoded:
        """Return conversations, of which what the assistant says is learned."""
        found = Encoded([])
        for row, number in zip(rows, numbers, strict=True):
            turns = turns_of(row[self.conversation or ""], number)
            example = encode_conversation(self.tokenizer, turns, number, row.get("tools"))
            if len(example.input_ids) > self.max_length:
                found.long += 1
                if self.too_long == "error":
                    raise UserError(
                        f"row {number} is a conversation of {len(example.input_ids)} tokens, max_length is "
                        f"{self.max_length}: raise it, or set too_long to truncate or drop."
                    )
                example = Example(example.input_ids[: self.max_length], example.labels[: self.max_length])
                learned = any(label != IGNORED for label in example.labels[1:])
                if self.too_long == "drop" or not learned:
                    continue
            found.items.append(replace(example, domain=row.get(DOMAIN)))
        return found

    def examples(self, rows: Sequence[Row], numbers: Sequence[int], train_on_prompt: bool) -> Encoded:
        """Return prompts with responses; of choices, the right one."""
        texts = []
        for row, number in zip(rows, numbers, strict=True):
            if self.choices is not None:
                choices = self.choices_of(row, number)
                row = {**row, "choice": choices[right_choice(row[self.answer or ""], choices, number)]}
            texts.append(self._texts(row, number, end=True))
        kept, long = self._fitting(texts)
        if not kept:
            return Encoded([], long)
        chosen = [texts[place] for place in kept]
        examples = self._encode(chosen, [numbers[place] for place in kept], True, train_on_prompt)
        domains = [rows[place].get(DOMAIN) for place in kept]
        pairs = zip(examples, domains, strict=True)
        return Encoded([replace(example, domain=domain) for example, domain in pairs], long)

    def questions(self, rows: Sequence[Row], numbers: Sequence[int]) -> Encoded:
        """Return questions with all of their choices."""
        texts, owners, answers = [], [], []
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            choices = self.choices_of(row, number)
            answers.append(right_choice(row[self.answer or ""], choices, number))
            texts += [self._texts({**row, "choice": choice}, number, end=False) for choice in choices]
            owners += [place] * len(choices)
        examples = iter(
            replace(example, domain=rows[place].get(DOMAIN))
            for example, place in zip(
                self._encode(texts, [numbers[place] for place in owners], end=False), owners, strict=True
            )
        )
        counts = np.bincount(owners)
        return Encoded(
            [
                Question([next(examples) for _ in range(count)], answer)
                for count, answer in zip(counts, answers, strict=True)
            ]
        )

    def choices_of(self, row: Row, number: int) -> list[str]:
        """Return the choices of a row.

        Raises:
            UserError: If its column holds no list of texts.
        """
        if not isinstance(self.choices, str):
            return [render(template, row, number) for template in self.choices or []]
        choices = row[self.choices]
        if not isinstance(choices, list) or not choices or not all(isinstance(text, str) for text in choices):
            raise UserError(
                f"row {number} has {choices!r} in column {self.choices!r}: expected a list of texts, the "
                "choices."
            )
        return choices

    def _texts(self, row: Row, number: int, end: bool) -> tuple[str, str]:
        """Return prompt and response of a row; the response closed if `end` and in chat format."""
        prompt, response = render(self.prompt, row, number), render(self.response, row, number)
        if not self.chat:
            return prompt, response
        head, closed = chat_texts(self.tokenizer, prompt, response.strip(), self.system)
        return head, closed if end else response.strip()

    def _encode(
        self,
        texts: list[tuple[str, str]],
        numbers: Sequence[int],
        end: bool,
        train_on_prompt: bool = False,
    ) -> list[Example]:
        prompts = encode_prompts(self.tokenizer, [prompt for prompt, _ in texts], self.chat)
        close = end and not self.chat
        responses = encode_responses(self.tokenizer, [response for _, response in texts], close)
        if self.too_long == "truncate":
            responses = [ids[: self.max_length - 1] for ids in responses]
        return [
            join(prompt, response, self.max_length, number, train_on_prompt)
            for prompt, response, number in zip(prompts, responses, numbers, strict=True)
        ]

    def _fitting(self, texts: list[tuple[str, str]]) -> tuple[list[int], int]:
        """Return the places of the rows to keep, and how many responses are too long."""
        places = list(range(len(texts)))
        if self.too_long == "error":
            return places, 0
        answers = encode_responses(self.tokenizer, [response for _, response in texts], not self.chat)
        long = {place for place in places if len(answers[place]) >= self.max_length}
        kept = places if self.too_long == "truncate" else [place for place in places if place not in long]
        return kept, len(long)
