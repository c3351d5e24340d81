"""Target names, per-site values and configuration: what is accepted, and what is refused how."""

import peft
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.targets import site_depth, site_value
from tests.tuner.tiny import llama


def build(**options):
    return peft.get_peft_model(llama(layers=4), RoutedLoraConfig(**options)).base_model


def counts(tuner):
    return {site: values["num_experts"] for site, values in tuner.peft_config["default"].sites.items()}


def test_default_targets_come_from_the_architecture():
    assert {site.rsplit(".", 1)[-1] for site in counts(build(method="top_k"))} == {"q_proj", "v_proj"}
    endings = {site.rsplit(".", 1)[-1] for site in counts(build(method="dynmole"))}
    assert endings == {"gate_proj", "up_proj", "down_proj"}


def test_all_linear_leaves_the_head_out():
    assert len(counts(build(target_modules="all-linear"))) == 4 * 7


def test_excluded_modules_and_layers_to_transform():
    sites = counts(build(target_modules="attention", exclude_modules=["k_proj"], layers_to_transform=None))
    assert not [site for site in sites if site.endswith("k_proj")]
    sites = counts(build(target_modules=["q_proj"], layers_to_transform=[1, 2], layers_pattern="layers"))
    assert sorted(site_depth(site) for site in sites) == [1, 2]


def test_experts_per_depth_and_by_pattern():
    sites = counts(build(method="top_k", num_experts=[2, 8], target_modules=["q_proj"]))
    assert [sites[f"model.layers.{i}.self_attn.q_proj"] for i in range(4)] == [2, 2, 8, 8]
    sites = counts(
        build(method="soft", num_experts={r"layers\.0\.": 3, "default": 5}, target_modules=["q_proj"])
    )
    assert [sites[f"model.layers.{i}.self_attn.q_proj"] for i in range(4)] == [3, 5, 5, 5]
    assert site_value([2, 4, 6, 8], "h.11.attn", depths=12, field="r") == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dynmol"}, "Did you mean 'dynmole'"),
        ({"target_modules": ["q_prj"]}, "Did you mean 'q_proj'"),
        ({"target_modules": "nothing.*"}, "matches no layer"),
        ({"target_modules": "(q_proj"}, "not a regular expression"),
        ({"target_modules": ["embed_tokens"]}, "is a Embedding"),
        ({"num_experts": 0}, "num_experts must be"),
        ({"num_experts": 2, "selector": {"name": "top_k", "k": 3}}, "keeps 3 experts"),
        ({"method": "dynmole", "num_experts": {"nowhere": 2}}, "no pattern"),
        ({"r": 0}, "r must be"),
        ({"alpha": -1}, "alpha must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"bias": "all"}, "bias='all'"),
        ({"selector": "top_q"}, "unknown selector"),
        ({"scorer": {"name": "linear", "bias": True}}, "no option 'bias'"),
        ({"aux_losses": [{"name": "entropy", "wieght": 1}]}, "Did you mean 'weight'"),
        ({"aux_losses": ["entrpy"]}, "unknown auxiliary loss"),
        ({"compute_dtype": "half"}, "compute_dtype is"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_unknown_architecture_needs_targets():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(UserError, match="has no default layers"):
        peft.get_peft_model(model, RoutedLoraConfig())


def test_a_list_over_depth_needs_numbered_blocks():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x)

    with pytest.raises(UserError, match="no numbered block"):
        peft.get_peft_model(Flat(), RoutedLoraConfig(target_modules=["fc"], num_experts=[2, 4]))


def test_mamba_refuses_the_projection_that_kernels_bypass():
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UserError, match="fused kernels"):
        peft.get_peft_model(
            MambaForCausalLM(config), RoutedLoraConfig(target_modules=["in_proj", "out_proj"])
        )
    model = peft.get_peft_model(
        MambaForCausalLM(config), RoutedLoraConfig(target_modules=["in_proj", "x_proj"])
    )
    model(torch.ones(1, 3, dtype=torch.long))
    assert model.base_model.uncalled_sites() == []
