"""A run that is killed and resumed equals one that was never interrupted, bit for bit."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.training.callbacks import BestCheckpoint, LastCheckpoint, RoutingMonitor
from moe_adapt.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.randomness import rng_state, run_seed, seed_batch, set_rng_state
from tests.training.runs import NUM_CLASSES, loader, routed, text_batches, trainer

ROWS = 24  # 6 batches of 4
EPOCHS = 2


class Kill(L.Callback):
    """Stop without warning after some batches, as a killed process would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.after:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def uninterrupted(bert, tmp_path_factory) -> SequenceClassifier:
    return run(bert, tmp_path_factory.mktemp("uninterrupted"))


def rows(bert: str) -> TextClassificationData:
    words = [f"text {i % 7} about {i % NUM_CLASSES}" for i in range(ROWS)]
    table = [{"text": word, "label": i % NUM_CLASSES} for i, word in enumerate(words)]
    return TextClassificationData(bert, train=table, validation=table[:4], batch_size=4, max_length=16)


def run(
    bert: str, folder: Path, kill: int | None = None, resume: bool = False, **options: Any
) -> SequenceClassifier:
    L.seed_everything(3, verbose=False)
    data = rows(bert)
    if kill is None and resume:
        torch.manual_seed(99)  # a new process has another history of draws ...
    module = SequenceClassifier(
        bert, NUM_CLASSES, tuner=routed("dynmole", dropout=0.2), lr=1e-2, schedule="cosine", warmup=0.2
    )
    if resume:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.normal_()  # ... and its adapter starts from other values
    callbacks = [LastCheckpoint(every_n_train_steps=2), BestCheckpoint(), RoutingMonitor(every_n_steps=1)]
    runner = trainer(
        folder, max_epochs=EPOCHS, callbacks=callbacks + ([] if kill is None else [Kill(kill)]), **options
    )
    start = str(folder / "checkpoints" / "last.ckpt") if resume else None
    if kill is None:
        runner.fit(module, data, ckpt_path=start)
    else:
        with pytest.raises(RuntimeError, match="killed"):
            runner.fit(module, data)
    module.monitor_history = callbacks[2].history  # type: ignore[attr-defined]
    module.optimizer_state = runner.optimizers[0].state_dict()["state"]  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("kill", "options"),
    [
        pytest.param(3, {}, id="mid-epoch"),
        pytest.param(6, {}, id="epoch-boundary"),
        pytest.param(9, {}, id="second-epoch"),
        pytest.param(5, {"accumulate_grad_batches": 2}, id="accumulation"),
        pytest.param(4, {"val_check_interval": 3}, id="validation-within-epoch"),
        pytest.param(4, {"val_check_interval": 2}, id="validation-where-it-would-be-saved"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(bert, uninterrupted, tmp_path, kill, options):
    whole = run(bert, tmp_path / "whole", **options) if options else uninterrupted
    run(bert, tmp_path / "parts", kill=kill, **options)
    resumed = run(bert, tmp_path / "parts", resume=True, **options)
    expected, found = adapter_state(whole), adapter_state(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    moments, resumed_moments = whole.optimizer_state, resumed.optimizer_state
    assert all(torch.equal(moments[i]["exp_avg"], resumed_moments[i]["exp_avg"]) for i in moments)
    assert whole.monitor_history == resumed.monitor_history
    assert len(whole.monitor_history) >= 2


class Score(L.Callback):
    """Log a validation metric that falls and rises with the steps."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", [0.0, 0.3, 0.5, 0.9, 0.8, 0.9, 0.4][trainer.global_step // 2])


class BreakingOff(AtomicCheckpointIO):
    """Die instead of writing the best checkpoint for the n-th time."""

    def __init__(self, times: int) -> None:
        self.left = times

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if Path(path).name == "best.ckpt":
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("killed")
        super().save_checkpoint(checkpoint, path, storage_options)


@pytest.mark.parametrize(
    ("interval", "kill", "best_first"), [(1.0, 1, True), (1.0, 1, False), (2, 2, False), (3, 1, True)]
)
def test_a_best_state_that_was_not_written_is_found_again(bert, tmp_path, interval, kill, best_first):
    def best(folder: Path, times: int = 0, resume: bool = False) -> tuple[int, dict[str, torch.Tensor]]:
        L.seed_everything(3, verbose=False)
        module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed(), lr=1e-2)
        callbacks = [LastCheckpoint(every_n_train_steps=2), BestCheckpoint("score", "max")]
        runner = trainer(
            folder,
            max_epochs=EPOCHS,
            num_sanity_val_steps=0,
            callbacks=[Score(), *callbacks[:: -1 if best_first else 1]],
            val_check_interval=interval,
            plugins=[BreakingOff(times)],
        )
        last = folder / "checkpoints" / "last.ckpt"
        runner.fit(module, rows(bert), ckpt_path=str(last) if resume else None)
        found = read_checkpoint(folder / "checkpoints" / "best.ckpt")
        return found["global_step"], found["state_dict"]

    step, expected = best(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        best(tmp_path / "parts", times=kill)
    resumes = (tmp_path / "parts" / "checkpoints" / "last.ckpt").is_file()
    found_step, found = best(tmp_path / "parts", resume=resumes)
    assert found_step == step and all(torch.equal(found[name], expected[name]) for name in expected)


def test_draws_of_other_loaders_do_not_change_training(bert, tmp_path):
    def train(validate: bool) -> dict[str, torch.Tensor]:
        L.seed_everything(3, verbose=False)
        module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed(dropout=0.2), lr=1e-2)
        validation = loader(text_batches(1)) if validate else None  # draws a seed
        trainer(tmp_path, max_epochs=2).fit(module, loader(text_batches(2)), validation)
        return adapter_state(module)

    expected, found = train(validate=False), train(validate=True)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_rng_state_round_trip_is_weights_only(tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.save(rng_state(), tmp_path / "rng.pt")
    drawn = random.random(), np.random.rand(), np.random.randn(), torch.rand(2)
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    again = random.random(), np.random.rand(), np.random.randn(), torch.rand(2)
    assert drawn[:3] == again[:3]
    assert torch.equal(drawn[3], again[3])


def test_batches_and_processes_have_different_seeds():
    draws = set()
    for rank, epoch, batch in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed_batch(7, rank, epoch, batch)
        draws.add((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len(draws) == 4
    seed_batch(7, 0, 0, 1)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) in draws


def test_run_seed_is_that_of_seed_everything():
    L.seed_everything(11, verbose=False)
    assert run_seed() == 11
