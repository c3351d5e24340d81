r"""Language modelling: prompts with responses, questions with choices, or plain text.

Four kinds of table:

* prompt and response: ``prompt="Question: {question}\nAnswer:"``, ``response=" {answer}"``;
* multiple choice: in addition ``choices="options"`` (a column of lists, or a list of templates) and
  ``answer="label"``. The response template may name ``{choice}``: training takes the right choice,
  validation and test take every choice in turn;
* conversations: a column ``messages`` (OpenAI) or ``conversations`` (ShareGPT); see
  `moe_adapt.data.conversations`. It is taken where the table has it and not the prompt's columns;
* plain text: ``text_column="text"``, the documents joined and cut into blocks of `max_length` tokens.

Alpaca's columns (instruction, input, output) become prompt and response (`moe_adapt.data.formats`).
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from moe_adapt.data.chat_template import chat_template as chat_template_of
from moe_adapt.data.conversations import conversation_column
from moe_adapt.data.disk import DiskTable
from moe_adapt.data.encoding import DOMAIN, Encoded, RowEncoder
from moe_adapt.data.formats import alpaca_row, is_alpaca, unread
from moe_adapt.data.packages import public_name
from moe_adapt.data.packing import Packed, pack_examples, packed_batch
from moe_adapt.data.prompts import IGNORED, Example, check_template, encode_prompts, template_fields
from moe_adapt.data.questions import Question, pack, right_choice
from moe_adapt.data.tables import SourceOption, TableSource, load_table, require_columns, texts_of
from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.base import Batch, SeededDataModule
from moe_adapt.training.datamodules.domains import DomainColumn, Unknown
from moe_adapt.training.datamodules.rows import DiskRows, RawRow, Rows

__all__ = ["CausalLMData", "Question", "pack", "right_choice"]


class CausalLMData(SeededDataModule):
    r"""Prompts with responses, multiple choice or plain text, as batches for a causal language model.

    Batches hold ``input_ids, attention_mask, labels``, each [B,S], padded on the right, with labels -100
    where nothing is learned. Multiple-choice validation and test batches have one sequence per choice [M,S],
    and ``choice_row`` [M], the row of each sequence, and ``answer`` [B], the index of the right choice among
    its row's.

    Each of train, validation and test is a file (.json, .jsonl, .csv, .tsv, .parquet, .txt, also .gz), a
    folder written by `Dataset.save_to_disk`, or a data set on the Hub as NAME:CONFIGURATION@SPLIT.

    Args:
        tokenizer: Name or folder of the tokenizer, usually that of the backbone.
        train: The training rows.
        validation: The validation rows; if None, a share of the training rows is held out.
        test: The test rows, also used for predictions.
        prompt: Template of the prompt over the columns, such as "Question: {question}\nAnswer:".
        response: Template of the response, such as " {answer}"; with `choices` it may name {choice}.
        choices: Column that holds the list of choices, or one template per choice.
        answer: Column of the right choice, as an index from 0 or as the choice's text.
        chat: Put prompt and response into the tokenizer's chat format.
        system: What the system says first in chat format.
        chat_template: Chat format where the tokenizer has none (`moe_adapt.data.chat_template`): ``plain``,
            ``chatml`` or a Jinja file.
        text_column: Column of plain text to model, instead of prompt and response.
        domain_column: Column of the domain (task) of a row, whose number in ``domain_ids`` (one per sequence)
            is for routers that are trained by label; not with `text_column`.
        domain_groups: Domain of each value of `domain_column` (``moe-adapt group`` finds it); None makes
            every value a domain.
        domain_unknown: ``base`` leaves rows whose domain no training row has to what all share, and says so;
            ``error`` refuses them.
        column_names: Names of the columns of CSV and TSV files that have no header line.
        train_on_prompt: Learn the prompt as well as the response; validation and test never count it.
        max_length: Most tokens per sequence; a longer prompt loses its beginning.
        too_long: What becomes of a row whose response alone exceeds `max_length`, and of a conversation that
            does: ``error``, ``truncate`` (its end is cut) or ``drop``; counted and told.
        packing: Put several training examples into one row of at most `max_length` tokens; each attends to
            itself alone, and `batch_size` counts rows.
        on_disk: Folder for rows that do not fit in memory: they are written there once, as Arrow files, and
            made into tokens batch by batch. None keeps all rows in memory.
        validation_fraction: Share of the training rows held out if no validation rows are given.
        batch_size: Rows per batch; with choices, questions per batch.
        max_train_rows: Train on so many rows only, chosen at random; None takes all.
        group_by_length: Put sequences of similar length into one batch, which saves padding.
        num_workers: Worker processes per loader; 0 loads in the main process.
        seed: Fixes the held-out rows, the chosen rows and the order of every epoch.

    Raises:
        UserError: If a source cannot be read, a column or template field is missing, a split is empty, a
            response alone exceeds `max_length`, or an answer is none of the choices (all of these in
            `setup`).
    """

    def __init__(
        self,
        tokenizer: str,
        train: SourceOption | None = None,
        validation: SourceOption | None = None,
        test: SourceOption | None = None,
        prompt: str | None = None,
        response: str | None = None,
        choices: str | list[str] | None = None,
        answer: str | None = None,
        chat: bool = False,
        system: str | None = None,
        chat_template: str | None = None,
        text_column: str | None = None,
        domain_column: str | None = None,
        domain_groups: dict[str, str] | None = None,
        domain_unknown: Unknown = "error",
        column_names: list[str] | None = None,
        train_on_prompt: bool = False,
        max_length: int = 512,
        too_long: Literal["error", "truncate", "drop"] = "error",
        packing: bool = False,
        on_disk: str | None = None,
        validation_fraction: float = 0.1,
        batch_size: int = 8,
        max_train_rows: int | None = None,
        group_by_length: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        super().__init__(
            sources, validation_fraction, batch_size, max_train_rows, group_by_length, num_workers, seed
        )
        if (text_column is None) == (prompt is None):
            raise UserError(
                "give either `prompt` (and `response` or `choices`) or `text_column` for plain text."
            )
        if prompt is not None and response is None and choices is None:
            raise UserError("a `prompt` needs a `response` template, such as ' {answer}', or `choices`.")
        if text_column is not None and domain_column is not None:
            raise UserError("text_column joins documents into blocks without domains: drop domain_column.")
        if (choices is None) != (answer is None):
            raise UserError(
                "`choices` and `answer` go together: the choices, and the column of the right one."
            )
        if packing:
            _refuse("packing", text_column=text_column, domain_column=domain_column, on_disk=on_disk)
        if on_disk is not None:
            drop = too_long if too_long == "drop" else None
            _refuse("on_disk", text_column=text_column, domain_column=domain_column, too_long=drop)
        self.prompt = prompt
        self.response = response if response is not None else " {choice}"
        self.choices = choices
        self.answer = answer
        self.chat = chat
        self.system = system
        self.text_column = text_column
        self.domains = DomainColumn(domain_column, domain_groups, domain_unknown)
        self.column_names = column_names
        self.train_on_prompt = train_on_prompt
        self.max_length = max_length
        self.too_long: Literal["error", "truncate", "drop"] = too_long
        self.packing = packing
        self.on_disk = on_disk
        self.conversations: dict[str, str | None] = {}
        self.tokenizer = load_tokenizer(tokenizer, max_length)
        self.tokenizer_name = public_name(tokenizer)
        self.chat_template = chat_template_of(self.tokenizer, chat_template)
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer!r} has no end-of-text token: a causal model needs one."
            )

    def answering(self) -> dict[str, Any]:
        """Return templates, chat format, length and tokenizer."""
        conversation = self._conversation(next(iter(self.conversations), "train"))
        return {
            "task": "text-generation",
            "prompt": None if conversation else self.prompt,
            "response": self.response,
            "chat": self.chat or conversation is not None,
            "system": self.system,
            "chat_template": self.chat_template,
            "max_length": self.max_length,
            "tokenizer": self.tokenizer_name,
            **self.domains.answering(),
        }

    def read(self, source: TableSource, split: str) -> Rows:
        """Return the table's rows as they are, after checking columns and templates."""
        if self.on_disk is not None:
            table: Any = DiskTable.of(source, split, Path(self.on_disk).expanduser(), self.column_names)
        else:
            table = load_table(source, split, self.column_names)
        if self.text_column is not None:
            texts = [{"text": text} for text in texts_of(table, self.text_column, source)]
            return Rows(texts, np.zeros(len(texts), dtype=np.int64))
        columns = list(table.column_names)
        missing = not set(template_fields(self.prompt or "")) <= set(columns)
        conversation = conversation_column(columns) if missing else None
        self.conversations[split] = conversation
        alpaca = conversation is None and is_alpaca(columns)
        if split == "train":
            self._note_unread(columns, conversation, alpaca)
        columns += ["prompt", "response"] if alpaca else []
        if conversation is None:
            self._check_columns(table, columns, source)
        fields = template_fields(self.prompt or "")
        convert = partial(alpaca_row, fields=fields) if alpaca else None
        if self.on_disk is not None:
            return DiskRows(table, split, convert, self.group_by_length)
        rows = table.to_list() if convert is None else map(convert, table.to_list())
        domains = self.domains.read(table, source)
        items = [{**row, DOMAIN: domain} for row, domain in zip(rows, domains, strict=True)]
        return Rows(items, np.zeros(len(items), dtype=np.int64))

    def _conversation(self, split: str) -> str | None:
        """Return the split's column of conversations; rows held out are of the training table."""
        return self.conversations.get(split, self.conversations.get("train"))

    def _check_columns(self, table: Any, columns: list[str], source: TableSource) -> None:
        if self.answer is not None:
            require_columns(table, [self.answer], source)
            templates = [] if isinstance(self.choices, str) else list(self.choices or [])
            for template in templates:
                check_template(template, columns)
            if isinstance(self.choices, str):
                require_columns(table, [self.choices], source)
            columns = [*columns, "choice"]
        check_template(self.prompt or "", columns)
        check_template(self.response, columns)

    def _note_unread(self, columns: Sequence[str], conversation: str | None, alpaca: bool) -> None:
        templates = [self.prompt or "", self.response]
        templates += [] if isinstance(self.choices, str) else list(self.choices or [])
        read = [name for template in templates for name in template_fields(template)]
        read += [self.answer or "", self.domains.column or ""]
        read += [self.choices] if isinstance(self.choices, str) else []
        if conversation is not None:
            read = [conversation, "tools", self.domains.column or ""]
        elif alpaca:
            read += ["instruction", "input"] if {"prompt", "instruction"} & {*read} else []
            read += ["output"] if "response" in read else []
        idle = unread(columns, read)
        self.notes += [f"columns that nothing reads: {', '.join(idle)}"] if idle else []

    def first_example(self) -> str:
        """Return the first training row as text; what is learned stands in « »."""
        (example,) = self.made([self.splits["train"][0]])
        parts = []
        for learned, group in groupby(
            zip(example.input_ids, example.labels, strict=True), key=lambda pair: pair[1] != IGNORED
        ):
            text = str(self.tokenizer.decode([token for token, _ in group]))
            parts.append(f"«{text}»" if learned else text)
        return "".join(parts)

    def prepare(self, rows: Rows, split: str) -> Rows:
        """Return the rows as token sequences; rows on disk become them batch by batch."""
        if isinstance(rows, DiskRows):
            return rows.of_split(split)
        items: list[Any]
        if self.text_column is not None:
            items = self._blocks(rows)
        else:
            items = self._kept(self._encoded(rows.items, range(len(rows)), split), len(rows))
        if self.packing and split == "train":
            items = pack_examples(items, self.max_length)
        lengths = [len(item.choices) if isinstance(item, Question) else len(item.input_ids) for item in items]
        return Rows(items, np.zeros(len(items), dtype=np.int64), lengths)

    def _encoded(self, rows: Sequence[Any], numbers: Sequence[int], split: str) -> Encoded:
        encoder = RowEncoder(
            tokenizer=self.tokenizer,
            prompt=self.prompt or "",
            response=self.response,
            choices=self.choices,
            answer=self.answer,
            chat=self.chat,
            system=self.system,
            max_length=self.max_length,
            too_long=self.too_long,
            conversation=self._conversation(split),
        )
        train = split == "train"
        return encoder.encode(rows, numbers, self.train_on_prompt and train, every_choice=not train)

    def _kept(self, found: Encoded, rows: int) -> list[Any]:
        """Note how many rows were too long; what is left must not be nothing."""
        if found.long:
            word = "cut" if self.too_long == "truncate" else "dropped"
            self.notes.append(f"{found.long} of {rows} rows too long: {word}")
        if not found.items:
            raise UserError(f"every row exceeds max_length {self.max_length}: raise it.")
        return found.items

    def _blocks(self, rows: Rows) -> list[Example]:
        texts = [row["text"] for row in rows.items]
        blocks = pack(
            encode_prompts(self.tokenizer, texts, chat=False), self.max_length, self.tokenizer.eos_token_id
        )
        if not blocks:
            raise UserError("the texts have no tokens to predict.")
        return blocks

    def made(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return the rows as token sequences, which those on disk are not yet.

        Raises:
            UserError: If a row on disk does not fit, or a batch of them has nothing to learn.
        """
        if not isinstance(rows[0], RawRow):
            return rows
        found = self._encoded([row.row for row in rows], [row.number for row in rows], rows[0].split).items
        if not found:
            raise UserError(
                f"row {rows[0].number} says nothing to learn within max_length {self.max_length}."
            )
        return found

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Return a batch padded on the right to its longest sequence."""
        examples: list[Example] = []
        choice_row: list[int] = []
        answers: list[int] = []
        rows = self.made(rows)
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else self.tokenizer.eos_token_id
        if isinstance(rows[0], Packed):
            return packed_batch(rows, pad)
        for number, row in enumerate(rows):
            if isinstance(row, Example):
                examples.append(row)
            else:
                examples += row.choices
                choice_row += [number] * len(row.choices)
                answers.append(row.answer)
        ids = [torch.tensor(example.input_ids) for example in examples]
        labels = [torch.tensor(example.labels) for example in examples]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            **self.domains.batch([example.domain for example in examples]),
        }
        if answers:
            batch |= {"choice_row": torch.tensor(choice_row), "answer": torch.tensor(answers)}
        return batch


#: Why two options exclude each other.
_REASONS = {
    ("packing", "text_column"): "plain text is packed already",
    ("packing", "domain_column"): "a packed row has several domains",
    ("packing", "on_disk"): "it needs the length of every row before the first batch",
    ("on_disk", "text_column"): "documents are joined before they are cut into blocks",
    ("on_disk", "domain_column"): "domains are numbered before the first batch",
    ("on_disk", "too_long"): "rows are counted before they are made into tokens; take truncate or error",
}


def _refuse(option: str, **others: str | None) -> None:
    """Raise the error for options that exclude `option`."""
    for name, value in others.items():
        if value is not None:
            raise UserError(
                f"{option} and {name} {value!r} exclude each other: {_REASONS[option, name]}; leave one out."
            )
