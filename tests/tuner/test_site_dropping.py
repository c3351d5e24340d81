"""Dropping adapted layers: none is nothing, some is the adapter off there, saved and opened, and refusals."""

import pytest
import torch

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.load import load_adapter
from moe_adapt.serving.opening import open_model
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.site_dropping import drop_sites, least_needed, site_necessity
from tests.hub.conftest import run  # noqa: F401  a fixture
from tests.tuner.tiny import adapted, batch, llama


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch()).logits


def sites(model):
    return [layer.site for layer in adapted_layers(model.base_model.model)]


def test_dropping_nothing_changes_no_bit():
    model = adapted("top_k", num_experts=3)
    before, names = logits(model), sites(model)
    drop_sites(model, [])
    assert torch.equal(logits(model), before) and sites(model) == names


@pytest.mark.parametrize("method", ["top_k", "dynmole"])
def test_dropped_layers_are_the_base_s_and_the_rest_is_saved(method, tmp_path):
    model, other = (adapted(method, num_experts=3) for _ in range(2))
    gone = sites(model)[::2]
    for layer in adapted_layers(other.base_model.model):
        layer._disable_adapters = layer.site in gone
    drop_sites(model, gone)
    assert torch.equal(logits(model), logits(other))
    model.save_pretrained(str(tmp_path))
    again = load_adapter(llama(), tmp_path)
    assert sites(again) == sites(model) == [site for site in sites(other) if site not in gone]
    assert torch.equal(logits(again), logits(model))


def test_necessity_is_the_loss_without_a_layer():
    model = adapted("top_k", num_experts=3)
    model.eval()

    def loss():
        return float(model(**batch()).loss)

    found = site_necessity(model.base_model, loss)
    assert list(found) == sites(model)
    with torch.no_grad():
        whole = loss()
    one = sites(model)[1]
    drop_sites(model, [one])
    with torch.no_grad():
        assert loss() - whole == pytest.approx(found[one], abs=1e-6)


def test_an_adapter_that_does_nothing_is_needed_nowhere():
    model = adapted("top_k", num_experts=3)
    with torch.no_grad():
        for layer in adapted_layers(model.base_model.model):
            layer.moe_adapt_B["default"].zero_()
    model.eval()
    assert set(site_necessity(model.base_model, lambda: float(model(**batch()).loss)).values()) == {0.0}


def test_refusals():
    model = adapted("top_k", num_experts=3)
    with pytest.raises(UserError, match="no adapted layer 'x'"):
        drop_sites(model, ["x"])
    with pytest.raises(UserError, match="leave no adapter"):
        drop_sites(model, sites(model))
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="from 0 to below 1"):
            least_needed({"a": 1.0}, share)


def test_the_command(run, tmp_path, capsys):  # noqa: F811
    assert main(["export", str(run), "--to", str(tmp_path / "half"), "--drop_sites", "0.5"]) == 0
    assert "2 of 4 layers dropped: loss on validation rows" in capsys.readouterr().out
    model = open_model(tmp_path / "half", base=str(run.parent / "mini-bert")).model
    assert len(sites(model)) == 2
