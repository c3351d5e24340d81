"""Texts with one label each: a table to padded batches of tokens."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel

from moe_adapt.data.disk import DiskTable
from moe_adapt.data.formats import unread
from moe_adapt.data.labels import LabelColumn, LabelTable, label_column
from moe_adapt.data.packages import public_name
from moe_adapt.data.tables import (
    SourceOption,
    TableSource,
    checked_texts,
    describe,
    load_table,
    require_columns,
)
from moe_adapt.data.tokenizer import check_not_empty, load_tokenizer, pad_on_the_right
from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.base import Batch, SeededDataModule
from moe_adapt.training.datamodules.domains import DomainColumn, Unknown
from moe_adapt.training.datamodules.rows import DiskTexts, Rows

__all__ = ["TextClassificationData"]


class TextClassificationData(SeededDataModule):
    """Tables of texts and labels, as batches ``input_ids [B,S], attention_mask [B,S], labels [B]``.

    Each of train, validation and test is a file (.json, .jsonl, .csv, .tsv, .parquet, also .gz), a folder
    written by `Dataset.save_to_disk`, or a data set on the Hub as NAME:CONFIGURATION@SPLIT.

    Args:
        tokenizer: Name or folder of the tokenizer, usually that of the backbone.
        train: The training rows.
        validation: The validation rows; if None, a share of the training rows is held out.
        test: The test rows, also used for predictions.
        text_column: Column of the text.
        text_pair_column: Column of a second text, for tasks on pairs of texts.
        label_column: Column of the label: texts or whole numbers (`moe_adapt.data.labels`).
        domain_column: Column of the domain (task) of a text, whose number in ``domain_ids`` [B] is for
            routers that are trained by label.
        domain_groups: Domain of each value of `domain_column` (``moe-adapt group`` finds it); None makes
            every value a domain.
        domain_unknown: ``base`` leaves rows whose domain no training row has to what all share, and says so;
            ``error`` refuses them.
        class_names: Names of the classes in the order of their numbers; None takes them from the training
            rows.
        column_names: Names of the columns of CSV and TSV files that have no header line.
        on_disk: Folder for rows that do not fit in memory: they are written there once, as Arrow files, and
            read batch by batch. None keeps all rows in memory.
        validation_fraction: Share of the training rows held out if no validation rows are given, class by
            class.
        max_length: Most tokens per text (or pair); what is longer is cut.
        batch_size: Rows per batch.
        max_train_rows: Train on so many rows only, chosen class by class; None takes all.
        group_by_length: Put texts of similar length into one batch, which saves padding.
        num_workers: Worker processes per loader; 0 loads in the main process.
        seed: Fixes the held-out rows, the chosen rows and the order of every epoch.

    Raises:
        UserError: If a source cannot be read, a column is missing, a split is empty, or a label is none of
            the classes (all of these in `setup`).
    """

    def __init__(
        self,
        tokenizer: str,
        train: SourceOption | None = None,
        validation: SourceOption | None = None,
        test: SourceOption | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        domain_column: str | None = None,
        domain_groups: dict[str, str] | None = None,
        domain_unknown: Unknown = "error",
        class_names: list[str] | None = None,
        column_names: list[str] | None = None,
        on_disk: str | None = None,
        validation_fraction: float = 0.1,
        max_length: int = 128,
        batch_size: int = 32,
        max_train_rows: int | None = None,
        group_by_length: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        super().__init__(
            sources, validation_fraction, batch_size, max_train_rows, group_by_length, num_workers, seed
        )
        self.text_columns = [text_column] if text_pair_column is None else [text_column, text_pair_column]
        self.label_column = label_column
        self.domains = DomainColumn(domain_column, domain_groups, domain_unknown)
        self.column_names = column_names
        self.on_disk = on_disk
        self.max_length = max_length
        self.class_names: list[str] = list(map(str, class_names or []))
        self._labels: LabelTable | None = None
        self._tables: dict[str, tuple[Any, LabelColumn]] = {}
        self.tokenizer = load_tokenizer(tokenizer, max_length)
        self.tokenizer_name = public_name(tokenizer)
        pad_on_the_right(self.tokenizer, tokenizer)

    @property
    def num_classes(self) -> int:
        """Number of classes; known after `setup`."""
        return len(self.class_names)

    def answering(self) -> dict[str, Any]:
        """Return class names, columns, length and tokenizer."""
        return {
            "task": "text-classification",
            "class_names": list(self.class_names),
            "text_columns": list(self.text_columns),
            "label_column": self.label_column,
            "max_length": self.max_length,
            "tokenizer": self.tokenizer_name,
            **self.domains.answering(),
        }

    def first_example(self) -> str:
        """Return the first training text and its class."""
        texts, label, _ = self.splits["train"][0]
        return f"{' | '.join(texts)}\n«{self.class_names[label]}»"

    def setup(self, stage: str | None = None) -> None:
        """Read the rows; the labels of all splits make one table before any of them is numbered.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict`` (which takes the test rows).

        Raises:
            UserError: If there are no rows for that stage, or a source is not as it should be.
        """
        given = {split: source for split, source in self.sources.items() if source is not None}
        if self._labels is None and given:
            for split, source in given.items():
                table = self._table(source, split)
                self._tables[split] = table, label_column(table, self.label_column, source)
            columns = [column for _, column in self._tables.values()]
            first, _ = next(iter(self._tables.values()))
            declared = isinstance(first.features.get(self.label_column), ClassLabel)
            if not (self.class_names or declared or "train" in given):
                raise UserError(
                    "the classes are unknown without training rows: set `class_names` or `train`."
                )
            self._labels = LabelTable(columns, self.class_names)
            self.class_names = self._labels.names
        super().setup(stage)

    def _table(self, source: TableSource, split: str) -> Any:
        if self.on_disk is None:
            table: Any = load_table(source, split, self.column_names)
        else:
            table = DiskTable.of(source, split, Path(self.on_disk).expanduser(), self.column_names)
        names = zip(self.text_columns, ("text_column", "text_pair_column"), strict=False)
        options = {column: f"--data.{name}" for column, name in names}
        options[self.label_column] = "--data.label_column"
        require_columns(table, [*self.text_columns, self.label_column], source, options)
        return table

    def read(self, source: TableSource, split: str) -> Rows:
        """Return rows of (texts, class number)."""
        assert self._labels is not None
        table, column = self._tables.pop(split)
        if split == "train":
            read = [*self.text_columns, self.label_column, self.domains.column or ""]
            idle = unread(table.column_names, read)
            self.notes += [f"columns that nothing reads: {', '.join(idle)}"] if idle else []
        labels = self._labels.encode(column)
        domains = self.domains.read(table, source)
        texts = zip(*(checked_texts(table[name], name, source) for name in self.text_columns), strict=True)
        if isinstance(table, DiskTable):
            lengths = np.zeros(len(table), dtype=np.int32)
            check_not_empty(self.tokenizer, measured(texts, lengths), describe(source))
            numbers = None if self.domains.column is None else np.array(domains, dtype=np.int32)
            return DiskTexts(table, self.text_columns, labels, numbers, lengths)
        rows = list(texts)
        check_not_empty(self.tokenizer, rows, describe(source))
        items = list(zip(rows, labels.tolist(), domains, strict=True))
        return Rows(items, labels, [sum(map(len, row)) for row in rows])

    def collate(self, rows: list[tuple[tuple[str, ...], int, int | None]]) -> Batch:
        """Return a batch, padded to its longest row."""
        columns = [list(column) for column in zip(*(texts for texts, _, _ in rows), strict=True)]
        encoded = self.tokenizer(
            *columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        labels = torch.tensor([label for _, label, _ in rows])
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels,
            **self.domains.batch([domain for _, _, domain in rows]),
        }


def measured(texts: Iterable[tuple[str, ...]], lengths: np.ndarray) -> Iterator[tuple[str, ...]]:
    """Yield the texts of every row, and write how many characters it has into `lengths`, [rows]."""
    for row, parts in enumerate(texts):
        lengths[row] = sum(map(len, parts))
        yield parts
