"""A base with four-bit weights, as bitsandbytes stores them; a stand-in does the arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn

from moe_adapt.hub.export import export_merged
from moe_adapt.hub.load import load_adapter
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.model import adapted_layers
from tests.hub.tiny import IDS, build_base, logits


class Linear4bit(nn.Linear):
    """Two values per byte in one column: neither shape nor dtype of the weight are those of a linear."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.scale = float(plain.weight.detach().abs().max()) / 7
        values = ((plain.weight.data / self.scale).round() + 8).to(torch.uint8).reshape(-1, 2)
        packed = (values[:, :1] << 4) | values[:, 1:]
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        values = torch.cat([self.weight >> 4, self.weight & 15], dim=1).reshape(self.out_features, -1)
        return F.linear(x, (values.to(x.dtype) - 8) * self.scale)


def quantized_base():
    base = build_base()
    for block in base.model.layers:
        for holder in (block.self_attn, block.mlp):
            for name, child in list(holder.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(holder, name, Linear4bit(child))
    return base


def adapted(method, **options):
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "up_proj"], "r": 2, "dropout": 0.0, "task_type": "CAUSAL_LM"}
    config = RoutedLoraConfig(method=method, **settings, **options)
    return get_peft_model(quantized_base(), config)


def test_trains_saves_and_loads(tmp_path):
    model = adapted("top_k", num_experts=3)
    assert len(adapted_layers(model)) == 4
    assert torch.equal(logits(model), logits(quantized_base())), "experts start at zero"
    stored = {name: p.clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        loss = model.train()(input_ids=IDS, labels=IDS).loss + model.base_model.aux_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters() if name in stored)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(quantized_base(), tmp_path / "adapter", adapter_name="again")
    assert torch.equal(logits(loaded), logits(model))


def test_merging_into_it_is_refused_but_a_stock_lora_fits(tmp_path):
    model = adapted("uniform_dense", num_experts=2)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.moe_adapt_B["default"])
    with pytest.raises(NotImplementedError, match="quantised"):
        model.merge_adapter()
    folder = export_merged(model.eval(), tmp_path / "stock").folder
    stock = PeftModel.from_pretrained(quantized_base(), folder).eval()
    torch.testing.assert_close(logits(stock), logits(model), rtol=1e-4, atol=1e-5)
