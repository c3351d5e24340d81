import json
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.training.callbacks import (
    AdapterReport,
    BestCheckpoint,
    LastCheckpoint,
    ManifestCallback,
    OutputFolderGuard,
    PlainProgress,
    RoutingMonitor,
    claim_folder,
    progress_bar,
)
from moe_adapt.training.callbacks.adapter_report import expert_sums
from moe_adapt.training.callbacks.manifest import logged
from moe_adapt.training.modules import SequenceClassifier
from tests.training.runs import NUM_CLASSES, loader, routed, text_batches, trainer


@pytest.fixture
def module(bert) -> SequenceClassifier:
    L.seed_everything(0, verbose=False)
    return SequenceClassifier(bert, NUM_CLASSES, tuner=routed("dynmole"), lr=1e-2)


class Stop(L.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, *_):
        raise self.error


def test_checkpoints_have_fixed_names_and_best_follows_the_metric(module, tmp_path):
    scores = iter([0.2, 0.9, 0.4])

    class Score(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("score", next(scores))

    callbacks = [Score(), LastCheckpoint(), BestCheckpoint("score", "max")]
    runner = trainer(tmp_path, callbacks=callbacks, max_epochs=3, num_sanity_val_steps=0)
    runner.fit(module, loader(text_batches(2)), loader(text_batches(1)))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    epochs = {n: torch.load(folder / f"{n}.ckpt", weights_only=True)["epoch"] for n in ("best", "last")}
    assert epochs == {"best": 1, "last": 2}


def test_best_takes_the_modules_own_metric(module, tmp_path):
    best = BestCheckpoint()
    trainer(tmp_path, callbacks=[best]).fit(module, loader(text_batches(1)), loader(text_batches(1)))
    assert (best.monitor, best.mode) == ("val/acc", "max")
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_a_run_without_validation_has_a_last_checkpoint_only(module, tmp_path):
    trainer(tmp_path, callbacks=[LastCheckpoint(), BestCheckpoint()]).fit(module, loader(text_batches(2)))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_last_is_written_every_n_steps(module, tmp_path):
    steps = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            path = tmp_path / "checkpoints" / "last.ckpt"
            steps.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else 0)

    trainer(tmp_path, callbacks=[LastCheckpoint(every_n_train_steps=2), Watch()]).fit(
        module, loader(text_batches(5))
    )
    assert steps == [0, 0, 2, 2, 4]


def test_manifest(module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/moe-adapt", "fit", "--out", "a folder"])
    trainer(tmp_path, callbacks=[ManifestCallback()]).fit(module, loader(text_batches(2)))
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["status"] == "finished"
    assert record["command"] == "moe-adapt fit --out 'a folder'"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["steps"] == 2
    assert record["seed"] == 0
    assert record["trainable_parameters"] == module.tuner.summary().trainable_total
    assert record["metrics"]["train/loss"] > 0
    assert record["peak_memory_mb"] > 10


def test_a_folder_that_is_deleted_during_a_run_is_an_error(module, tmp_path):
    class Deletes(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (tmp_path / "manifest.json").unlink()

    with pytest.raises(UserError, match="was deleted while the run wrote into it"):
        trainer(tmp_path, callbacks=[ManifestCallback(), Deletes()]).fit(module, loader(text_batches(1)))


def test_manifest_of_a_failed_run(module, tmp_path):
    with pytest.raises(RuntimeError):
        trainer(tmp_path, callbacks=[ManifestCallback(), Stop(RuntimeError("no"))]).fit(
            module, loader(text_batches(2))
        )
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "failed"


def test_a_used_folder_is_refused_and_nothing_in_it_changes(module, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"already holds a run \(manifest\.json\)"):
        trainer(tmp_path, callbacks=[OutputFolderGuard(), ManifestCallback()]).fit(
            module, loader(text_batches(1))
        )
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_claiming_a_folder(tmp_path):
    claim_folder(tmp_path / "new")
    (tmp_path / "notes.txt").write_text("mine")
    claim_folder(tmp_path)
    (tmp_path / "metrics.csv").touch()
    (tmp_path / "checkpoints").mkdir()
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.touch()
    claim_folder(tmp_path, resume_from=last)
    assert last.exists()
    with pytest.raises(UserError, match="already holds a run"):
        claim_folder(tmp_path, resume_from=tmp_path.parent / "other" / "checkpoints" / "last.ckpt")
    claim_folder(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_routing_monitor(module, tmp_path):
    monitor = RoutingMonitor(every_n_steps=2, per_site=True)
    runner = trainer(tmp_path, callbacks=[monitor], max_epochs=2)
    runner.fit(module, loader(text_batches(3)))
    assert [row["step"] for row in monitor.history] == [1, 2, 3, 4, 6]
    names = runner.callback_metrics
    assert {f"route/mean/{key}" for key in ("entropy", "load_max", "dead", "k")} <= set(names)
    sites = list(module.tuner.routing_stats())
    assert all(f"route/{site}/entropy" in names for site in sites)
    report = json.loads((tmp_path / "routing.json").read_text())
    assert list(report["load"]) == sites
    assert all(sum(shares) == pytest.approx(1.0, abs=1e-5) for shares in report["load"].values())
    assert (tmp_path / "routing.png").stat().st_size > 5000


def test_routing_monitor_looks_once_per_optimiser_step(module, tmp_path):
    monitor = RoutingMonitor(every_n_steps=1)
    trainer(tmp_path, callbacks=[monitor], accumulate_grad_batches=2).fit(module, loader(text_batches(4)))
    assert [row["step"] for row in monitor.history] == [1, 2]


def test_routing_load_is_the_token_weighted_mean_of_the_last_epoch(module, tmp_path):
    seen = []

    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(pl_module.tuner.routing_stats())

    monitor = RoutingMonitor(every_n_steps=1)
    batches = [*text_batches(1, size=4), *text_batches(1, size=2)]
    trainer(tmp_path, callbacks=[Copy(), monitor], max_epochs=2).fit(module, loader(batches))
    site = next(iter(seen[0]))
    first, second = seen[2][site], seen[3][site]
    assert (first.tokens, second.tokens) == (28, 14)  # padding is not counted
    expected = (first.load * 28 + second.load * 14) / 42
    assert torch.allclose(torch.tensor(monitor.report()["load"][site]), expected, atol=1e-6)


def test_routing_monitor_of_a_linear_probe_writes_nothing(bert, tmp_path):
    probe = SequenceClassifier(bert, NUM_CLASSES)
    trainer(tmp_path, callbacks=[RoutingMonitor(), AdapterReport()]).fit(probe, loader(text_batches(1)))
    assert not list(tmp_path.glob("routing*"))


def test_adapter_report_prints_the_summary_and_finds_idle_experts(bert, tmp_path, capsys):
    module = SequenceClassifier(bert, NUM_CLASSES, tuner=routed("top_k", selector={"name": "top_k", "k": 1}))
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "moe_adapt_router__" in name:
                p.zero_()  # equal logits: the first expert wins every token
    module.lr = {"router": 0.0, "experts": 1e-2, "head": 1e-2}
    report = AdapterReport()
    trainer(tmp_path, callbacks=[report]).fit(module, loader(text_batches(2)))
    printed = capsys.readouterr().out
    assert str(module.tuner.summary()) in printed
    sites = len(module.tuner.routing_stats())
    assert f"experts trained: {sites} of {3 * sites}" in printed
    assert all(len(experts) == 2 for experts in report.idle.values())
    assert len(expert_sums(module)) == sites


def test_progress_in_plain_lines(module, tmp_path, capsys):
    bar = progress_bar(seconds=0.0)
    assert isinstance(bar, PlainProgress)  # pytest's output is no terminal
    trainer(tmp_path, callbacks=[bar], enable_progress_bar=True).fit(module, loader(text_batches(2)))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1")]
    assert len(lines) == 3
    assert "step 2/2" in lines[-1]
    assert "train/loss" in lines[-1]


def test_fast_dev_run_leaves_no_files(module, tmp_path):
    callbacks = [
        OutputFolderGuard(),
        LastCheckpoint(),
        BestCheckpoint(),
        ManifestCallback(),
        RoutingMonitor(),
    ]
    trainer(tmp_path / "run", callbacks=callbacks, fast_dev_run=True).fit(module, loader(text_batches(1)))
    assert not Path(tmp_path / "run").exists()


def test_a_run_that_had_nothing_left_keeps_the_metrics_it_logged(tmp_path):
    assert logged(tmp_path) == {}
    text = "epoch,route/mean/k,step,train/loss,val/acc\n0,2.0,0,1.5,\n0,,1,,0.5\n1,2.0,2,0.25,\n1,,3,,1.0\n"
    (tmp_path / "metrics.csv").write_text(text)
    assert logged(tmp_path) == {"train/loss": 0.25, "val/acc": 1.0}
