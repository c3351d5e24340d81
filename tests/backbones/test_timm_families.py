"""Families of timm backbones with random weights: experts train two steps, and are the same when reloaded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from moe_adapt.backbones.image import classifier_paths
from moe_adapt.hub.export import export_merged
from moe_adapt.tuner import RoutedLoraConfig

timm = pytest.importorskip("timm", reason="needs the extra vision (timm)")

_SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


class Family(NamedTuple):
    """A backbone, small enough for a test, and what gets experts.

    Attributes:
        name: A model of timm.
        targets: Value of target_modules.
        size: Height and width of the images.
        options: What makes it small.
    """

    name: str
    targets: str
    size: int = 64
    options: dict[str, Any] = {}

    def build(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = timm.create_model(self.name, num_classes=4, **self.options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.weight.data.fill_(1.0)  # where it starts at 0, a residual branch has no gradient
        return model


FAMILIES = {
    "ViT": Family("test_vit", "ffn", 160),
    "DINOv2": Family("vit_small_patch14_dinov2", "ffn", 28, {"img_size": 28, **_SMALL}),
    "DeiT": Family("deit_tiny_distilled_patch16_224", "attention", 32, {"img_size": 32, **_SMALL}),
    "Swin": Family(
        "swin_tiny_patch4_window7_224",
        "ffn",
        56,
        {"img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
    ),
    "Mixer": Family("mixer_s32_224", "ffn", 64, {"img_size": 64}),
    "Hiera": Family("hiera_tiny_224", "ffn", 64, {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "MobileViT": Family("mobilevit_xxs", "ffn"),
    "ConvNeXt": Family("test_convnext", "all-conv"),
    "ConvNeXt-atto": Family("convnext_atto", "ffn", 64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}),
    "ResNet": Family("test_resnet", "all-conv"),
    "RegNet": Family("regnetx_002", "all-conv"),
    "EfficientNet": Family("test_efficientnet", "ffn"),
    "MobileNetV3": Family("mobilenetv3_small_050", "ffn"),
    "MobileNetV4": Family("mobilenetv4_conv_small_035", "ffn"),
    "PoolFormer": Family("poolformer_s12", "ffn"),
    "LeViT": Family("levit_128s", "ffn", 64, {"img_size": 64}),
    "EVA-02": Family("eva02_tiny_patch14_224", "all-linear", 28, {"img_size": 28, **_SMALL}),
    "BEiT": Family("beit_base_patch16_224", "all-linear", 32, {"img_size": 32, **_SMALL}),
}
QUICK = {"ViT", "DeiT", "ConvNeXt", "EfficientNet", "ConvNeXt-atto", "BEiT"}
FULL_SIZE = {
    "DINOv2": Family("vit_small_patch14_dinov2", "ffn", 518),
    "Swin": Family("swin_tiny_patch4_window7_224", "ffn", 224),
    "Hiera": Family("hiera_tiny_224", "ffn", 224),
    "ConvNeXt": Family("convnext_tiny", "ffn", 224),
    "ResNet": Family("resnet50", "all-conv", 224),
    "EVA-02": Family("eva02_tiny_patch14_224", "all-linear", 224),
    "BEiT": Family("beit_base_patch16_224", "all-linear", 224),
}


def adapt(family: Family) -> PeftModel:
    base = family.build()
    config = RoutedLoraConfig(
        method="top_k",
        r=2,
        num_experts=3,
        target_modules=family.targets,
        modules_to_save=classifier_paths(base),
    )
    return peft.get_peft_model(base, config)


def train(model: PeftModel, images: Tensor, step: Callable[[Tensor], Tensor]) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        (step(model(images)) + model.base_model.aux_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def loss(logits: Tensor | tuple[Tensor, ...]) -> Tensor:
    heads = logits if isinstance(logits, tuple) else (logits,)
    return sum((F.cross_entropy(head, torch.tensor([0, 3])) for head in heads), torch.zeros(()))


def check(family: Family, folder) -> PeftModel:
    images = torch.randn(2, 3, family.size, family.size, generator=torch.Generator().manual_seed(1))
    model = adapt(family)
    assert len(model.base_model.uncalled_sites()) >= 2
    experts = {name: p.detach().clone() for name, p in model.named_parameters() if "moe_adapt_B" in name}
    train(model, images, loss)
    assert model.base_model.uncalled_sites() == []
    assert all(not torch.equal(p, experts[name]) for name, p in model.named_parameters() if name in experts)
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(family.build(), folder).eval()
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    return model


@pytest.mark.filterwarnings("error:.*were not reached")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_experts_train_and_reload(name, tmp_path):
    check(FAMILIES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*were not reached")
@pytest.mark.parametrize("name", FULL_SIZE)
def test_experts_train_and_reload_at_full_size(name, tmp_path):
    check(FULL_SIZE[name], tmp_path)


@pytest.mark.parametrize("name", [pytest.param("ResNet", marks=pytest.mark.slow), "ConvNeXt-atto"])
def test_merged_export_is_what_was_measured(name, tmp_path):
    family = FAMILIES[name]
    images = torch.randn(2, 3, family.size, family.size, generator=torch.Generator().manual_seed(1))
    model = adapt(family)
    train(model, images, loss)
    batches = [{"x": images}]
    report = export_merged(model, tmp_path / "merged", calibration=batches, gap_batches=batches)
    stock = PeftModel.from_pretrained(family.build(), tmp_path / "merged").eval()
    with torch.no_grad():
        routed, merged = (each(images).log_softmax(-1) for each in (model, stock))
    divergence = (routed.exp() * (routed - merged)).sum(-1).clamp(min=0)
    torch.testing.assert_close(float(divergence.mean()), report.gap.kl_mean, atol=1e-6, rtol=1e-3)


def test_weights_that_a_model_reads_itself_get_no_experts():
    for name in ("EVA-02", "BEiT"):
        family = FAMILIES[name]
        for targets in ("all-linear", "attention"):
            sites = [
                layer.site
                for layer in adapt(family._replace(targets=targets)).modules()
                if hasattr(layer, "was_called")
            ]
            assert sites and not any(site.endswith("qkv") for site in sites)
