"""Training that starts from another adapter."""

from pathlib import Path

import pytest
import torch

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.runs.export import export_run
from moe_adapt.runs.warm_start import warm_start
from moe_adapt.training.checkpoint import checkpoint_path, read_checkpoint
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.tuner import RoutedLoraConfig
from tests.training.tiny import tiny_bert


def module(run, classes=2, backbone=None, **options):
    torch.manual_seed(1)
    config = RoutedLoraConfig(
        **{"method": "top_k", "num_experts": 3, "r": 2, "target_modules": "ffn", **options}
    )
    return SequenceClassifier(str(backbone or run.parent / "mini-bert"), classes, config, pooling="mean")


@pytest.fixture(params=["run", "exported", "repository"])
def source(request, run, tmp_path):
    if request.param == "run":
        return str(run)
    folder = export_run(run, tmp_path / "adapter").folder
    if request.param == "exported":
        return str(folder)
    request.getfixturevalue("hub")
    assert main(["export", str(run), "--to", "hf://someone/greetings"]) == 0
    return "someone/greetings"


def trained(run):
    return read_checkpoint(checkpoint_path(run))["state_dict"]


def test_adapter_and_head_are_taken_over(run, source):
    fresh = module(run, selector={"name": "top_k", "k": 1}, aux_losses=[])
    assert warm_start(fresh, source) == []
    state, wanted = adapter_state(fresh), trained(run)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("method", ["k_means", "condenser_bias"])
def test_statistics_of_routers_come_along(method, exported, run, tmp_path):
    other = tmp_path / method
    words = ["--model.tuner.num_experts=4", "--trainer.max_epochs=1", "--out", str(other)]
    config = str(run / "moe_adapt_config.yaml")
    assert main(["fit", "--config", config, f"--model.tuner.method={method}", *words]) == 0
    source = export_run(other, tmp_path / "adapter").folder if exported else other
    fresh = module(run, method=method, num_experts=4)
    assert warm_start(fresh, str(source)) == []
    state, wanted = adapter_state(fresh), trained(other)
    assert len(wanted) > len([p for p in fresh.parameters() if p.requires_grad])
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


def test_a_head_of_other_classes_keeps_its_own_start(run, source):
    fresh = module(run, classes=5)
    before = {name: tensor.clone() for name, tensor in adapter_state(fresh).items()}
    kept = warm_start(fresh, source)
    assert len(kept) == 2
    assert all("classifier" in name for name in kept)
    state, wanted = adapter_state(fresh), trained(run)
    for name, tensor in state.items():
        assert torch.equal(tensor, (before if "classifier" in name else wanted)[name])


def test_another_shape_is_refused_and_nothing_changes(run, source):
    fresh = module(run, r=4)
    before = {name: tensor.clone() for name, tensor in adapter_state(fresh).items()}
    with pytest.raises(UserError, match="have another shape"):
        warm_start(fresh, source)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(fresh).items())


def test_another_base_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="same base model"):
        warm_start(module(run, backbone=tiny_bert(tmp_path / "other", seed=9)), str(run))


def test_without_a_tuner_there_is_nothing_to_start(run):
    with pytest.raises(UserError, match="no tuner"):
        warm_start(SequenceClassifier(str(run.parent / "mini-bert"), 2), str(run))


def test_the_command_starts_from_a_run_and_resumes_on_its_own(run, tmp_path, caplog):
    config = ["fit", "--config", str(run / "moe_adapt_config.yaml"), "--model.lr=0", "--model.head_lr=0"]
    words = [*config, "--start_from", str(run), "--out", str(tmp_path / "second")]
    assert main([*words, "--trainer.max_epochs=1"]) == 0
    assert f"Starts from {run}." in caplog.messages
    caplog.clear()
    wanted = trained(run)
    last = Path(tmp_path, "second", "checkpoints", "last.ckpt")
    state = read_checkpoint(last)["state_dict"]
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert main([*words, "--trainer.max_epochs=2", "--resume"]) == 0
    assert not any("Starts from" in message for message in caplog.messages)
