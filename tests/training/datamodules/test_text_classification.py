import os
from pathlib import Path

import lightning as L
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules import TextClassificationData
from tests.training.tiny import tiny_tokenizer

ROWS = [{"text": f"text {i} " + "x" * i, "label": ["ham", "spam"][i % 2]} for i in range(20)]


def fitted(tokenizer, **options) -> TextClassificationData:
    data = TextClassificationData(tokenizer, **{"train": ROWS, "batch_size": 4, **options})
    data.setup("fit")
    return data


def test_batches(tokenizer):
    data = fitted(tokenizer, max_length=12)
    assert data.class_names == ["ham", "spam"] and data.num_classes == 2
    batches = list(data.train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == 18
    for batch in batches:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert batch["input_ids"].shape[1] == min(12, batch["attention_mask"].sum(1).max())
        texts = [data.tokenizer.decode(row, skip_special_tokens=True) for row in batch["input_ids"]]
        assert [int(text.split()[1]) % 2 for text in texts] == batch["labels"].tolist()


def test_validation_is_held_out_class_by_class(tokenizer):
    data = fitted(tokenizer)
    held = data.splits["validation"]
    assert sorted(held.strata.tolist()) == [0, 1]
    assert not set(held.items) & set(data.splits["train"].items)
    assert fitted(tokenizer).splits["validation"].items == held.items
    assert fitted(tokenizer, seed=1).splits["validation"].items != held.items


def test_given_splits(tokenizer):
    data = fitted(tokenizer, validation=ROWS[:3], test=ROWS[:5])
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [20, 3, 5]
    rows = [label for batch in data.test_dataloader() for label in batch["labels"].tolist()]
    assert rows == [0, 1, 0, 1, 0]
    assert [b["labels"].tolist() for b in data.predict_dataloader()] == [[0, 1, 0, 1], [0]]


def test_no_validation(tokenizer):
    assert fitted(tokenizer, validation_fraction=0.0).val_dataloader() == []


def test_max_train_rows_is_stratified(tokenizer):
    data = fitted(tokenizer, max_train_rows=6)
    assert sorted(data.splits["train"].strata.tolist()) == [0, 0, 0, 1, 1, 1]


def test_group_by_length_saves_padding(tokenizer):
    def padding(**options):
        return sum(
            int((b["attention_mask"] == 0).sum()) for b in fitted(tokenizer, **options).train_dataloader()
        )

    assert padding(group_by_length=True) < padding()


def test_pairs(tokenizer):
    data = fitted(
        tokenizer,
        train=[{"a": "p", "b": "q", "label": i % 2} for i in range(10)],
        text_column="a",
        text_pair_column="b",
    )
    row = next(iter(data.train_dataloader()))["input_ids"][0]
    assert data.tokenizer.decode(row) == "<s>p</s>q"


def test_order_is_that_of_the_seed(tokenizer):
    def order(seed):
        return [
            b["input_ids"].tolist() for b in fitted(tokenizer, validation=ROWS, seed=seed).train_dataloader()
        ]

    assert order(0) == order(0) != order(1)


def test_making_and_reading_loaders_leaves_the_random_state_alone(tokenizer):
    data = fitted(tokenizer)
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_setup_for_test_alone_needs_class_names(tokenizer):
    with pytest.raises(UserError, match="classes are unknown without training rows: set `class_names`"):
        TextClassificationData(tokenizer, test=ROWS).setup("test")
    data = TextClassificationData(tokenizer, test=ROWS, class_names=["spam", "ham"])
    data.setup("test")
    assert next(iter(data.test_dataloader()))["labels"][:2].tolist() == [1, 0]


def test_all_stages_under_a_trainer(tokenizer):
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            return self.weight * batch["labels"].float().mean()

        def validation_step(self, batch, batch_idx):
            self.log("rows", float(len(batch["labels"])), reduce_fx="sum")

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = dict(
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **quiet)
    data = TextClassificationData(tokenizer, train=ROWS, test=ROWS, batch_size=4)
    trainer.fit(Module(), datamodule=data)
    assert trainer.global_step == 5
    assert trainer.validate(Module(), datamodule=data, verbose=False) == [{"rows": 2.0}]
    assert trainer.test(Module(), datamodule=data, verbose=False) == [{"rows": 20.0}]


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("fit", {"train": None}, "no train rows: set `train` of TextClassificationData"),
        ("test", {}, "no test rows: set `test`"),
        ("validate", {"validation_fraction": 0.0}, "no validation rows"),
        ("fit", {"text_column": "sentence"}, "has no column 'sentence'"),
        ("fit", {"label_column": "labels"}, "has no column 'labels'. Did you mean 'label'"),
        ("fit", {"label_column": "class"}, "Choose one with --data.label_column label"),
        ("fit", {"train": []}, "the train split from the rows given in memory is empty"),
        (
            "fit",
            {"validation": [{"text": "a", "label": "eggs"}]},
            "row 0 .* has the label 'eggs', which is none",
        ),
        ("fit", {"class_names": ["ham"]}, "row 1 .* has the label 'spam'"),
    ],
)
def test_mistakes_in_the_data(tokenizer, stage, options, message):
    with pytest.raises(UserError, match=message):
        TextClassificationData(tokenizer, **{"train": ROWS, **options}).setup(stage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"max_train_rows": 0}, "max_train_rows must be at least 1"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\)"),
        ({"max_length": 1}, "max_length must be at least 2"),
    ],
)
def test_mistakes_in_the_options(tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        TextClassificationData(tokenizer, train=ROWS, **options)


def test_missing_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer could be loaded from"):
        TextClassificationData(str(tmp_path), train=ROWS)


@pytest.mark.skipif("MOE_ADAPT_DATA" not in os.environ, reason="MOE_ADAPT_DATA names no folder of real data")
def test_banking77(tokenizer):
    folder = Path(os.environ["MOE_ADAPT_DATA"], "banking77")
    data = TextClassificationData(
        tokenizer, train=f"{folder}/train.csv", test=f"{folder}/test.csv", label_column="category"
    )
    data.setup("fit")
    assert data.num_classes == 77
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [9003, 1000, 3080]


def test_domains_become_numbers_in_the_batch(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "task": ("law", "news")[i // 3]} for i in range(6)]
    options = {"tokenizer": str(tiny_tokenizer(tmp_path)), "train": rows, "validation_fraction": 0.0}
    data = TextClassificationData(**options, test=rows[3:], domain_column="task")
    data.setup("fit")
    data.setup("test")
    assert data.domains.names == ["law", "news"]
    assert next(iter(data.test_dataloader()))["domain_ids"].tolist() == [1, 1, 1]
    strange = TextClassificationData(
        **options, test=[{"text": "t", "label": "a", "task": "new"}], domain_column="task"
    )
    with pytest.raises(UserError, match=r"domain 'new'.*Did you mean 'news'"):
        strange.setup("fit")
    without = [*rows, {"text": "t", "label": "a", "task": None}]
    with pytest.raises(UserError, match=r"row 6 of .* has no task: expected a text or a whole number"):
        TextClassificationData(**{**options, "train": without}, domain_column="task").setup("fit")
