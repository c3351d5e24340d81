"""Routed experts on convolutions: one expert is PEFT's LoRA; methods, saving, merging, edits, precision."""

import warnings

import peft
import pytest
import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig, duplicate_experts, merge_experts
from moe_adapt.tuner.conv_site import RoutedConvLayer
from moe_adapt.tuner.methods import METHODS
from tests.tuner.tiny import randomize

#: Methods that route by token ids.
NEED_TEXT = {"hash", "random_fixed", "read_me"}
#: Methods whose pools take linear layers only.
NEED_LINEAR = {"rexmoe", "unipool"}


class Net(nn.Module):
    """A network with what convolutional ones have: strides, a depthwise layer, batch norm, a head."""

    def __init__(self, bypassed: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)
        self.bypassed = bypassed

    def forward(self, pixel_values):
        x = self.depthwise(self.norm(self.stem(pixel_values)).relu())
        x = nn.functional.conv2d(x, self.point.weight) if self.bypassed else self.point(x)
        return self.head(x.relu().mean(dim=(-2, -1)))


def base(**options) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def adapted(method="top_k", net=None, **options) -> peft.PeftModel:
    settings = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-conv"} | options
    model = peft.get_peft_model(base() if net is None else net, RoutedLoraConfig(method=method, **settings))
    randomize(model)
    return model


@pytest.fixture
def images():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_one_expert_is_pefts_lora_bit_for_bit(images):
    routed = adapted("lora", r=4)
    targets = ["stem", "point"]
    stock = peft.get_peft_model(base(), peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    for site in targets:
        ours = routed.base_model.model.get_submodule(site)
        theirs = stock.base_model.model.get_submodule(site)
        a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
        a.data.copy_(ours.moe_adapt_A["default"].reshape(a.shape))
        b.data.copy_(ours.moe_adapt_B["default"].reshape(b.shape))
    routed.eval(), stock.eval()
    one, other = routed(images), stock(images)
    assert torch.equal(one, other)
    one.square().sum().backward(), other.square().sum().backward()
    for site in targets:
        ours = routed.base_model.model.get_submodule(site).moe_adapt_A["default"].grad
        theirs = stock.base_model.model.get_submodule(site).lora_A["default"].weight.grad
        assert torch.equal(ours[0], theirs.flatten(1))


@pytest.mark.parametrize(
    "method,granularity",
    [(method, "position") for method in sorted(set(METHODS) - NEED_TEXT - NEED_LINEAR)]
    + [(method, "image") for method in ("top_k", "k_means", "condenser_bias")],
)
def test_every_method_trains_saves_and_reloads(method, granularity, images, tmp_path):
    # A list of MoLA counts blocks; slices divide the rank.
    experts = {"mola": {"num_experts": 3}, "slices": {"num_experts": 2}}.get(method, {})
    model = adapted(method, granularity=granularity, **experts)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.base_model.follow(optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        loss = model(images).square().mean() + model.base_model.aux_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [name for name, p in model.named_parameters() if name in before and not p.equal(before[name])]
    assert any("moe_adapt_A" in name for name in moved) and any("moe_adapt_B" in name for name in moved)
    model.eval()
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("method", ["top_k", "condenser_bias"])
def test_logits_from_the_convolution_are_those_of_the_patches(method, images, monkeypatch):
    model = adapted(method).eval()
    fast = model(images)
    monkeypatch.setattr(RoutedConvLayer, "_reads_logits_alone", staticmethod(lambda router: False))
    torch.testing.assert_close(model(images), fast)


def test_one_decision_per_image(images):
    model = adapted("soft", granularity="image").eval()
    with model.base_model.record():
        model(images)
    records = model.base_model.hooks.session.context.records.values()
    assert {len(record.gates) for record in records} == {3}
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, model(images))


def test_dropout_does_not_reach_the_router(images):
    model = adapted("soft", dropout=0.5).train()
    model(images)
    noisy = model.base_model.routing_stats()["stem"].importance
    model.eval()
    with model.base_model.record():
        model(images)
    assert torch.equal(noisy, model.base_model.routing_stats()["stem"].importance)


def test_router_is_exact_under_autocast(images):
    model = adapted("soft").eval()
    with model.base_model.record():
        model(images)
        exact = next(iter(model.base_model.hooks.session.context.records.values())).logits
        with torch.autocast("cpu", torch.bfloat16):
            model(images)
    half = next(iter(model.base_model.hooks.session.context.records.values())).logits
    assert half.dtype == torch.float32
    assert torch.equal(half, exact)


def test_constant_gates_merge_and_unmerge(images):
    model = adapted("uniform_dense").eval()
    expected = model(images)
    kernel = model.base_model.model.stem.base_layer.weight.clone()
    model.merge_adapter()
    assert not torch.equal(model.base_model.model.stem.base_layer.weight, kernel)
    torch.testing.assert_close(model(images), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model.stem.base_layer.weight, kernel)
    with pytest.raises(NotImplementedError, match="gates depend on the token"):
        adapted("top_k").merge_adapter()


def test_a_standardised_kernel_is_not_merged():
    layers = pytest.importorskip("timm.layers", reason="needs the extra vision (timm)")
    net = base()
    net.stem = layers.StdConv2d(3, 6, 3, stride=2, padding=1)
    with pytest.raises(NotImplementedError, match="StdConv2d, whose kernel is not used as it is stored"):
        adapted("lora", net=net).merge_adapter()


def test_edits_keep_the_function(images):
    model = adapted("soft", num_experts=3).eval()
    expected = model(images)
    duplicate_experts(model.base_model, [0], noise=0.0)
    torch.testing.assert_close(model(images), expected)
    merge_experts(model.base_model, [[0, 3]], method="concat")
    torch.testing.assert_close(model(images), expected)


def test_samples_with_different_adapters(images):
    model = adapted("soft")
    model.add_adapter("second", RoutedLoraConfig(method="top_k", r=2, target_modules=["point"]))
    randomize(model, seed=3)
    model.eval()
    mixed = model(images, adapter_names=["second", "__base__", "default"])
    model.set_adapter("second")
    torch.testing.assert_close(mixed[0], model(images)[0])
    model.set_adapter("default")
    torch.testing.assert_close(mixed[2], model(images)[2])
    with model.disable_adapter():
        torch.testing.assert_close(mixed[1], model(images)[1])


def test_batch_statistics_of_the_frozen_base_stay(images):
    model = adapted(net=base().train())
    mean = model.base_model.model.norm.running_mean.clone()
    for module in (model, model.train()):
        module(images)
        assert torch.equal(model.base_model.model.norm.running_mean, mean)
    trained = adapted(modules_to_save=["norm"]).train()
    trained(images)
    kept = trained.base_model.model.norm.modules_to_save["default"]
    assert not torch.equal(kept.running_mean, mean)


def test_grouped_convolutions_are_refused_by_name():
    with pytest.raises(UserError, match="'depthwise' is a Conv2d with 6 groups"):
        adapted(target_modules=["depthwise"])
    with pytest.raises(UserError, match="granularity is 'position' or 'image', got 'patch'"):
        RoutedLoraConfig(granularity="patch")


def test_a_site_that_is_passed_by_is_told_once(images):
    model = adapted(net=base(bypassed=True)).train()
    with pytest.warns(UserWarning, match=r"1 adapted layers were not reached .*\(point\)"):
        model(images).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images).sum().backward()
        adapted().train()(images).sum().backward()
