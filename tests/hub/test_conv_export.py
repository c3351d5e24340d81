"""Exports of adapters on convolutions, opened by PEFT alone."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.hub.export import export_experts, export_merged, export_model
from moe_adapt.hub.load import load_adapter
from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.test_conv_site import adapted, base


@pytest.fixture
def images():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_merged_constant_gates_are_exact(images, tmp_path):
    model = adapted("uniform_dense").eval()
    expected = model(images)
    export_merged(model, tmp_path / "merged")
    stock = PeftModel.from_pretrained(base(), tmp_path / "merged").eval()
    torch.testing.assert_close(stock(images), expected)
    torch.testing.assert_close(stock.merge_and_unload()(images), expected)


def test_merged_with_mean_gates_reports_its_gap(images, tmp_path):
    model = adapted("soft").eval()
    batches = [{"pixel_values": images}]
    report = export_merged(model, tmp_path / "merged", calibration=batches, gap_batches=batches)
    assert report.gap is not None and report.gap.rows == 3 and report.gap.kl_mean > 0
    stock = PeftModel.from_pretrained(base(), tmp_path / "merged").eval()
    with torch.no_grad():
        kl = (
            model(images).softmax(-1) * (model(images).log_softmax(-1) - stock(images).log_softmax(-1))
        ).sum(-1)
    assert abs(float(kl.mean()) - report.gap.kl_mean) < 1e-5


def test_each_expert_is_a_lora_that_can_come_back(images, tmp_path):
    model = adapted("top_k", num_experts=2).eval()
    export_experts(model, tmp_path / "experts")
    folders = [str(tmp_path / "experts" / "experts" / str(number)) for number in range(2)]
    layer = model.base_model.model.stem
    stock = PeftModel.from_pretrained(base(), folders[1]).eval()
    kernel = stock.base_model.model.stem.get_delta_weight("default")
    torch.testing.assert_close(kernel.flatten(1), layer.bank("default").delta_weight(1))
    again = get_peft_model(base(), RoutedLoraConfig(method="top_k", experts_from=folders))
    back = again.base_model.model.stem.bank("default")
    torch.testing.assert_close(back.delta_weight(1), layer.bank("default").delta_weight(1))


def test_routed_adapter(images, tmp_path):
    model = adapted("top_k", granularity="image").eval()
    folder = export_model(model, tmp_path / "adapter").folder
    assert torch.equal(load_adapter(base(), folder).eval()(images), model(images))


def test_what_pefts_lora_does_not_copy_is_refused(tmp_path):
    net = base()
    net.stem = nn.Conv2d(3, 6, 3, padding=2, dilation=2)
    with pytest.raises(UserError, match=r"stem is a convolution with dilation \(2, 2\)"):
        export_merged(adapted("lora", net=net), tmp_path / "merged")
