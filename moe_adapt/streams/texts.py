"""Streams of texts with one label each."""

from typing import Any

import torch
from torch.utils.data import Dataset

from moe_adapt.data.labels import label_column as labels_of
from moe_adapt.data.labels import number_labels
from moe_adapt.data.tables import SourceOption, load_table, texts_of
from moe_adapt.data.tokenizer import check_not_empty, load_tokenizer
from moe_adapt.errors import UserError
from moe_adapt.streams.base import Scenario, TaskStream
from moe_adapt.streams.rows import Opened, RowTable, classes_of_files, read_splits, said
from moe_adapt.streams.splits import Arrangement, Labelled, arrange

__all__ = ["TextStream", "Tokenized"]


class Tokenized(Dataset):
    """Token ids of texts, as ``input_ids`` [S] and ``attention_mask`` [S].

    Args:
        table: The rows; their contents are lists of texts.
        tokenizer: The tokenizer.
        max_length: Most tokens per text; what is longer is cut.
    """

    def __init__(self, table: RowTable, tokenizer: Any, max_length: int) -> None:
        texts = [table.contents[source][row] for source, row in zip(table.source, table.row, strict=True)]
        check_not_empty(tokenizer, [[text] for text in texts], "the texts of the stream")
        encoded = tokenizer(texts, truncation=True, max_length=max_length)
        self.ids = [torch.tensor(ids) for ids in encoded["input_ids"]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        ids = self.ids[row]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class TextStream(TaskStream):
    """Labelled texts as a stream of tasks.

    A source is a file (.json, .jsonl, .csv, .tsv, .parquet, also .gz), a saved folder, or a data set on the
    Hub as NAME:CONFIGURATION@SPLIT. A mapping from names to sources makes one domain of each.

    Args:
        tokenizer: Name or folder of the tokenizer, usually that of the backbone.
        train: The training texts; not with files as `tasks`.
        test: The test texts; None holds out `test_fraction`.
        scenario: ``class``, ``task``, ``domain`` or ``blurry``.
        increment: New classes per task.
        first: Classes of the first task; 0 for as many as `increment`.
        order: Names of all classes in the order in which they come; None uses `order_seed`.
        tasks: Which classes come in which task, as lists (``[[a, b], [c]]``) or by the task's name; or one
            file per task (``{billing: billing.jsonl}``), whose classes are new in it.
        order_seed: Seed of the classes' order, drawn as in the literature; None for that of their first rows.
        blur: Share of a class's training texts that is spread over all tasks, for ``blurry``.
        test_fraction: Share of every class held out for testing if there are no test texts.
        classes: Use these classes only: the first n, or those listed by name; None takes all.
        train_per_class: Train on so many texts of each class; None takes all.
        test_per_class: Test on so many texts of each class; None takes all.
        text_column: Column of the text.
        label_column: Column of the label: texts or whole numbers (`moe_adapt.data.labels`).
        max_length: Most tokens per text; what is longer is cut.
        seed: Decides which texts are held out, chosen or spread.

    Raises:
        UserError: If a source cannot be read, a column is missing, a class has no texts, or the numbers make
            no stream.
    """

    def __init__(
        self,
        tokenizer: str,
        train: SourceOption | None = None,
        test: SourceOption | None = None,
        scenario: Scenario = "class",
        increment: int | None = None,
        first: int = 0,
        order: list[str] | None = None,
        order_seed: int | None = 1993,
        blur: float = 0.1,
        test_fraction: float = 0.2,
        classes: int | list[str] | None = None,
        train_per_class: int | None = None,
        test_per_class: int | None = None,
        text_column: str = "text",
        label_column: str = "label",
        max_length: int = 64,
        seed: int = 0,
        tasks: list[list[str]] | dict[str, Any] | None = None,
    ) -> None:
        def opened(source: Any, split: str) -> Opened:
            table = load_table(source, split)
            texts = texts_of(table, text_column, source)
            labels, names = number_labels(labels_of(table, label_column, source))
            return Opened(texts, labels, names)

        names: list[str] | None = None
        if isinstance(tasks, dict) and any(isinstance(source, str) for source in tasks.values()):
            if train is not None:
                raise UserError("give train, or a file for each of tasks; not both.")
            train, (tasks, names) = tasks, classes_of_files(tasks, opened)
        if train is None:
            raise UserError("a stream needs training texts: set train, or tasks with a file each.")
        rows, testing = read_splits(
            train, test, opened, classes, test_fraction, train_per_class, test_per_class, seed, names
        )
        domain_of = (rows.domains, testing.domains) if names is None else (None, None)
        words = load_tokenizer(tokenizer, max_length)
        super().__init__(
            **arrange(
                Labelled(Tokenized(rows, words, max_length), rows.labels, domain_of[0]),
                Labelled(Tokenized(testing, words, max_length), testing.labels, domain_of[1]),
                rows.class_names,
                Arrangement(scenario, increment, first, order, order_seed, blur, seed, tasks),
                origin={
                    "kind": "texts",
                    "train": said(train),
                    "test": said(test),
                    "tokenizer": said(tokenizer),
                    "max_length": max_length,
                },
            )
        )
