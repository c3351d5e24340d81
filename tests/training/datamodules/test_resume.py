"""A resumed run gets the batches that the uninterrupted run would have got, under a real Trainer."""

import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.base import SeededDataModule
from moe_adapt.training.datamodules.rows import Rows

ROWS, BATCH = 11, 2  # six batches an epoch, the last one short


class Numbers(Rows):
    """Row i is (i, the epoch that the data set was told)."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, row: int) -> tuple[int, int]:
        return row, self.epoch


class NumbersData(SeededDataModule):
    def __init__(
        self, batch_size: int = BATCH, num_workers: int = 0, seed: int = 3, grouped: bool = False
    ) -> None:
        sources = {"train": ROWS, "validation": ROWS, "test": None}
        super().__init__(sources, 0.0, batch_size, None, grouped, num_workers, seed)

    def read(self, source, split):
        return Numbers(range(source), np.zeros(source), range(source))

    def collate(self, rows):
        return {"row": torch.tensor([r for r, _ in rows]), "epoch": torch.tensor([e for _, e in rows])}


class Recorder(L.LightningModule):
    """Records every training batch as (epoch, batch number, epoch of the data, rows), and may crash."""

    def __init__(self, crash_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.crash_at = crash_at
        self.seen: list[tuple] = []

    def training_step(self, batch, batch_idx):
        if self.crash_at is not None and self.global_step == self.crash_at:
            raise RuntimeError("killed")
        self.seen.append((self.current_epoch, batch_idx, set(batch["epoch"].tolist()), batch["row"].tolist()))
        return (self.weight**2).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks, **options) -> L.Trainer:
    settings = dict(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False)
    settings |= dict(enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder)
    if not callbacks:
        settings["enable_checkpointing"] = False
    return L.Trainer(**settings | options, callbacks=list(callbacks))


def run(folder, data=None, callbacks=(), ckpt=None, crash_at=None, **options):
    module = Recorder(crash_at)
    t = trainer(folder, *callbacks, **options)
    try:
        t.fit(module, datamodule=data or NumbersData(), ckpt_path=ckpt)
    except RuntimeError as error:
        assert str(error) == "killed"
    return module.seen


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 7, 12, 13])
@pytest.mark.parametrize("validate", [True, False])
def test_resume_equals_uninterrupted_from_every_step(tmp_path, steps, validate):
    """From the middle of an epoch, from its last batch (6, 12) and from the first of the next."""
    check_resume(tmp_path, steps, num_workers=0, **{} if validate else {"limit_val_batches": 0})


@pytest.mark.parametrize("steps", [2, 6])
def test_resume_with_worker_processes(tmp_path, steps):
    """Workers fetch ahead: what they fetched and nobody trained must come again."""
    check_resume(tmp_path, steps, num_workers=2)


def check_resume(folder, steps, num_workers, **options):
    whole = run(folder, NumbersData(num_workers=num_workers), **options)
    assert len(whole) == 18
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(folder, NumbersData(num_workers=num_workers), [keep], crash_at=steps, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        rest = run(
            folder, NumbersData(num_workers=num_workers), ckpt=folder / f"step={steps}.ckpt", **options
        )
    assert rest == whole[steps:]


@pytest.mark.parametrize("moment", ["train_epoch_end", "validation_end", "mid_epoch_validation"])
def test_resume_from_epoch_checkpoints(tmp_path, moment):
    options = {"val_check_interval": 3} if moment == "mid_epoch_validation" else {}
    whole = run(tmp_path, **options)
    at_end = moment == "train_epoch_end"
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=at_end)
    run(tmp_path, None, [keep], **options)
    names = sorted(tmp_path.glob("*.ckpt"))
    assert len(names) >= 3
    for path in names:
        steps = int(path.stem.split("=")[1].split("-")[0])
        assert run(tmp_path, ckpt=path, **options) == whole[steps:], path


def test_resume_after_an_exception_in_the_middle_of_a_batch(tmp_path):
    whole = run(tmp_path)
    run(tmp_path, None, [OnExceptionCheckpoint(tmp_path, "crash")], crash_at=8)
    assert run(tmp_path, ckpt=tmp_path / "crash.ckpt") == whole[8:]


@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_steps": 15}, {"limit_train_batches": 4}])
@pytest.mark.parametrize("steps", [4, 6, 7])
def test_resume_with_step_limits(tmp_path, options, steps):
    whole = run(tmp_path, **options)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(tmp_path, None, [keep], crash_at=steps, **options)
    assert run(tmp_path, ckpt=tmp_path / f"step={steps}.ckpt", **options) == whole[steps:]


def test_accumulated_batches_resume(tmp_path):
    whole = run(tmp_path, accumulate_grad_batches=2)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(tmp_path, None, [keep], crash_at=4, accumulate_grad_batches=2)
    assert run(tmp_path, ckpt=tmp_path / "step=4.ckpt", accumulate_grad_batches=2) == whole[8:]


def test_changed_data_refuse_to_resume(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(tmp_path, None, [keep], crash_at=2)
    with pytest.raises(UserError, match="batch_size was 2, is 3"):
        run(tmp_path, NumbersData(batch_size=3), ckpt=tmp_path / "step=2.ckpt")
    with pytest.raises(UserError, match="seed was 3, is 4"):
        run(tmp_path, NumbersData(seed=4), ckpt=tmp_path / "step=2.ckpt")


def test_epochs_differ_and_are_complete(tmp_path):
    seen = run(tmp_path, NumbersData(grouped=True))
    epochs = [[row for _, _, _, rows in seen[6 * e : 6 * e + 6] for row in rows] for e in range(3)]
    assert all(sorted(rows) == list(range(ROWS)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [told for _, _, told, _ in seen] == [{e} for e in range(3) for _ in range(6)]


class Ranked(Recorder):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        torch.save(self.seen, self.folder / f"rank{self.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_share_the_rows(tmp_path):
    module = Ranked(tmp_path)
    trainer(tmp_path, devices=2, strategy="ddp_fork").fit(module, datamodule=NumbersData())
    seen = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 9
    for epoch in range(3):
        rows = [row for part in seen for e, _, _, batch in part if e == epoch for row in batch]
        assert len(rows) == ROWS + 1 and set(rows) == set(range(ROWS))
