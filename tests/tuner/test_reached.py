"""What every routed method must reach on a small problem: tokens of four groups, each with a map of its own.

A frozen layer gets an adapter of four rank-one experts (one for the methods with a single LoRA) and is to
follow `y = W x + 2 u_g (v_g . x)`, with the group `g` of the token. The number is the share of the change
that is left unexplained after 120 steps of Adam: 1 at the start, about .7 for one LoRA of rank one.
"""

import peft
import pytest
import torch
from torch import Tensor, nn

from moe_adapt.runs.config_names import packaged_configs
from moe_adapt.tuner import RoutedLoraConfig

WIDTH, GROUPS, TOKENS, STEPS = 8, 4, 32, 120
ONE_LORA = {"num_experts": 1}
#: Method -> most that may be left, and options beside those of all.
REACHED = {
    "lora": (0.85, ONE_LORA),
    "lora_sum": (0.85, ONE_LORA),
    "uniform_dense": (0.6, {}),
    "hydralora": (0.12, {}),
    "soft": (0.02, {}),
    "top_k": (0.02, {}),
    "nucleus": (0.02, {}),
    "bip": (0.1, {}),
    "top_p": (0.12, {}),
    "mola": (0.02, {}),
    "ld_mole": (0.02, {}),
    "adamoe": (0.02, {"selector": {"name": "null_experts", "k": 4, "nulls": 4}}),
    "dynmole": (0.1, {}),
    "cosine": (0.12, {}),
    "k_means": (0.3, {}),
    "arrow": (0.4, {}),
    "condenser": (0.02, {}),
    "condenser_bias": (0.02, {}),
    "lora_mixer": (0.02, {}),
    "dymoe": (0.12, {}),
    "inc_moelora": (0.12, {}),
    "film": (0.1, {"r": 4, "alpha": 8}),
    "chain": (0.05, {"r": 4, "alpha": 8}),
    "slices": (0.25, {"r": 4, "alpha": 8}),
    "atoms": (0.02, {"num_experts": 16, "selector": {"name": "product_top_k", "k": 2}}),
    "router_frozen": (0.3, {}),
    "smoe_dropout": (0.25, {"selector": {"name": "growing_top_k", "k_min": 2, "k_max": 4}}),
    "random_fixed": (0.45, {}),
    "hash": (0.02, {}),
    "thor": (0.85, {}),
    "gate_policy": (0.3, {}),
    "unipool": (0.4, {}),
    "rexmoe": (0.1, {}),
    "rmoe": (0.1, {}),
    "read_me": (0.3, {"scorer": {"name": "pre_gate", "width": 8}}),
}
#: One map for all groups, or experts drawn by token, cannot reach what routing reaches.
NO_BETTER_THAN = {"lora": 0.6, "lora_sum": 0.6, "uniform_dense": 0.35, "random_fixed": 0.2, "thor": 0.6}


class Groups(nn.Module):
    """A frozen layer on embeddings whose means tell the groups of tokens apart."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(50)
        means = 3 * torch.randn(GROUPS, WIDTH, generator=generator)
        self.embedding, self.layer = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)
        own = torch.randn(TOKENS, WIDTH, generator=generator)
        self.embedding.weight.data = means[torch.arange(TOKENS) % GROUPS] + own
        self.layer.weight.data = 0.3 * torch.randn(WIDTH, WIDTH, generator=generator)
        self.layer.bias.data.zero_()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Tensor, domain_ids: Tensor | None = None) -> Tensor:
        return self.layer(self.embedding(input_ids))


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [4, 8], a group per row; the change wanted [4, 8, d]; and what the frozen layer gives."""
    ids = torch.arange(TOKENS).view(-1, GROUPS).t().contiguous()
    generator, model = torch.Generator().manual_seed(51), Groups()
    up, down = (torch.randn(GROUPS, WIDTH, generator=generator) for _ in range(2))
    x = model.embedding(ids).detach()
    change = 2 * torch.einsum("gsd,gd,go->gso", x, down / WIDTH**0.5, up)
    return ids, change, model.layer(x).detach()


def left(method: str, **options) -> float:
    """The share of the change that a trained adapter leaves unexplained."""
    ids, change, plain = problem()
    torch.manual_seed(0)
    shared = {"r": 1, "alpha": 2, "dropout": 0.0, "target_modules": ["layer"], "num_experts": GROUPS}
    model = peft.get_peft_model(Groups(), RoutedLoraConfig(method=method, **{**shared, **options}))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=4e-2)
    model.base_model.follow(optimizer)

    def unexplained() -> Tensor:
        found = model(input_ids=ids, domain_ids=torch.arange(GROUPS)) - plain
        return (found - change).square().mean() / change.square().mean()

    for step in range(STEPS):
        model.train().base_model.hooks.session.progress = step / STEPS
        (unexplained() + model.base_model.aux_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.eval()
        return float(unexplained())


def test_every_packaged_method_has_a_row():
    names = [name.partition("/")[2] for name in packaged_configs() if name.startswith("routed_lora/")]
    assert set(REACHED) == set(names)


@pytest.mark.parametrize("method", REACHED)
def test_a_method_reaches_its_number(method):
    most, options = REACHED[method]
    found = left(method, **options)
    assert NO_BETTER_THAN.get(method, 0.0) <= found <= most
