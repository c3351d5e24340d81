"""What routers learn once per optimizer step, and what they do at a share of the steps."""

import os

import peft
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig, add_experts
from moe_adapt.tuner.model import adapted_layers
from tests.tuner.tiny import adapted, batch, llama


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def biases(model):
    name = "moe_adapt_router__modifiers__0__bias"
    return {layer.site: getattr(layer, name)["default"].clone() for layer in adapted_layers(model)}


def condensing(**options):
    modifier = {"name": "condense_bias", "gamma": 0.5, **options}
    model = adapted("condenser", num_experts=4, selector={"name": "condenser", "k": 2}, modifiers=[modifier])
    for name, tensor in model.state_dict().items():
        if name.endswith(("__bias.default", "__used.default", "__chosen.default")):
            tensor.zero_()
    return model


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "non-reentrant", "reentrant"])
def test_the_bias_moves_once_per_optimizer_step(checkpointing):
    model = condensing().train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    model.base_model.follow(optimizer)
    for _ in range(2):
        for _ in range(4):
            (model(**batch()).loss + model.base_model.aux_loss()).backward()
        sums = dict(model.base_model.hooks.session.sums)
        optimizer.step()
    assert {round(float(v), 6) for bias in biases(model).values() for v in bias} <= {-1.0, 0.0, 1.0}
    assert all(bias.any() for bias in biases(model).values())
    real = 4 * int(batch()["attention_mask"].sum())
    assert all(float(value.sum()) == pytest.approx(real, rel=1e-4) for value in sums.values())


def test_evaluation_and_generation_never_count():
    model = condensing().eval()
    model(**batch())
    inputs = {key: value for key, value in batch(left_padding=0).items() if key != "labels"}
    model.generate(**inputs, max_new_tokens=2)
    model.base_model.after_step()
    assert not any(bias.any() for bias in biases(model).values())


def test_bias_and_condensers_are_saved_and_chosen_alike(tmp_path):
    model = condensing(condensers=2, condense_from=0.5).train()
    model.base_model.progress = 0.0
    for _ in range(3):
        model(**batch())
        model.base_model.after_step()
    model.save_pretrained(tmp_path)
    chosen = []
    for name in ("one", "two"):
        loaded = peft.PeftModel.from_pretrained(
            llama(), tmp_path, adapter_name=name, is_trainable=True
        ).train()
        loaded(**batch())
        layers = adapted_layers(loaded)
        bias = [layer.moe_adapt_router__modifiers__0__bias[name] for layer in layers]
        assert all(torch.equal(a, b) for a, b in zip(bias, biases(model).values(), strict=True))
        chosen.append([layer.moe_adapt_router__modifiers__0__chosen[name] for layer in layers])
        stats = loaded.base_model.routing_stats()
        assert all(site.mean_k == 2 for site in stats.values())
    assert all(int(a.sum()) == 2 and torch.equal(a, b) for a, b in zip(*chosen, strict=True))


def _rank(rank, path, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = condensing().train()
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    model.base_model.follow(optimizer)
    rows = {key: value[rank : rank + 1] for key, value in batch().items()}
    parallel(**rows).loss.backward()
    optimizer.step()
    torch.save(biases(model), f"{path}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_move_the_bias_as_one(tmp_path):
    multiprocessing.start_processes(_rank, (str(tmp_path), 29517), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = condensing().train()
    for rank in range(2):
        alone(**{key: value[rank : rank + 1] for key, value in batch().items()})
    alone.base_model.after_step()
    for site, bias in biases(alone).items():
        assert torch.equal(one[site], two[site]) and torch.equal(one[site], bias)


def test_hard_routing_is_one_lora_per_domain():
    rows = batch(rows=4, left_padding=0)
    domains = torch.tensor([0, 1, 1, 0])
    mixer = adapted(
        "lora_mixer", num_experts=2, selector={"name": "hard_soft", "k": 2}, aux_losses=[]
    ).train()
    mixer.base_model.progress = 0.0
    singles = []
    for domain in range(2):
        single = adapted("lora").train()
        for one, many in zip(adapted_layers(single), adapted_layers(mixer), strict=True):
            a, b = many.factors("default")
            one.moe_adapt_A["default"].data = a[[domain]].clone()
            one.moe_adapt_B["default"].data = b[:, [domain]].clone()
        singles.append(single)
    experts = [
        [p for n, p in m.named_parameters() if n.endswith(("_A.default", "_B.default"))]
        for m in (mixer, *singles)
    ]
    optimizers = [torch.optim.SGD(parameters, lr=0.5) for parameters in experts]
    for _ in range(3):
        logits = mixer(**rows, domain_ids=domains).logits
        losses = [logits[domains == d].square().mean() for d in range(2)]
        sum(losses).backward()
        for domain, single in enumerate(singles):
            own = {key: value[domains == domain] for key, value in rows.items()}
            single(**own).logits.square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for many, *ones in zip(*(adapted_layers(m) for m in (mixer, *singles)), strict=True):
        a, b = many.factors("default")
        for domain, one in enumerate(ones):
            own_a, own_b = one.factors("default")
            torch.testing.assert_close(a[[domain]], own_a, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(b[:, [domain]], own_b, rtol=1e-5, atol=1e-6)


def test_losses_on_routing_pass_decisions_by_label_by():
    model = adapted("lora_mixer", num_experts=3).train()
    ids = {"domain_ids": torch.tensor([0, 2])}
    model.base_model.progress = 0.2
    model(**batch(), **ids)
    assert float(model.base_model.aux_loss()) == 0
    model.base_model.progress = 0.7
    model(**batch(), **ids)
    assert float(model.base_model.aux_loss()) > 0


def test_domains_are_for_routers_only():
    model = adapted("soft").eval()
    ids = torch.tensor([0, 1])
    assert torch.equal(model(**batch(), domain_ids=ids).logits, model(**batch()).logits)


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_experts_stay_near_their_start(space, tmp_path):
    losses = [{"name": "preserve", "weight": 1.0, "space": space, "since": 0.5}]
    model = adapted("soft", num_experts=3, aux_losses=losses).train()
    for layer in adapted_layers(model):
        layer._await_start("default")
    model.base_model.progress = 0.6
    model(**batch())
    assert float(model.base_model.aux_loss()) == 0
    with torch.no_grad():
        for layer in adapted_layers(model):
            layer.moe_adapt_B["default"] += 0.1
    model(**batch())
    value = model.base_model.aux_loss()
    value.backward()
    grown = {
        n for n, p in model.named_parameters() if p.grad is not None and p.grad.any() and "_B.default" in n
    }
    assert float(value) > 0 and len(grown) == len(adapted_layers(model))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="x", is_trainable=True).train()
    loaded.base_model.progress = 0.6
    loaded(**batch())
    torch.testing.assert_close(loaded.base_model.aux_loss(), value)
    add_experts(model.base_model)
    model(**batch())
    assert float(model.base_model.aux_loss()) == 0


def test_the_coupling_loss_reaches_routers_and_experts():
    model = adapted("top_k", num_experts=3, aux_losses=[{"name": "router_coupling", "weight": 1.0}]).train()
    model(**batch())
    model.base_model.aux_loss().backward()
    touched = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert sum("scorer" in name for name in touched) == sum("_A.default" in name for name in touched) == 8


def test_heads_with_a_shared_a_equal_experts_with_equal_a():
    shared = adapted("hydralora", num_experts=3, target_modules=["q_proj", "down_proj"])
    apart = adapted("soft", num_experts=3, target_modules=["q_proj", "down_proj"], r=4, alpha=8)
    for one, many in zip(adapted_layers(shared), adapted_layers(apart), strict=True):
        assert one.moe_adapt_A["default"].shape[0] == 1
        many.moe_adapt_A["default"].data = one.moe_adapt_A["default"].data.expand(3, -1, -1).clone()
        many.moe_adapt_B["default"].data = one.moe_adapt_B["default"].data.clone()
        name = "moe_adapt_router__scorer__weight"
        getattr(many, name)["default"].data = getattr(one, name)["default"].data.clone()
    for model in (shared, apart):
        model.train()(**batch()).loss.backward()
    torch.testing.assert_close(shared(**batch()).logits, apart(**batch()).logits)
    for one, many in zip(adapted_layers(shared), adapted_layers(apart), strict=True):
        summed = many.moe_adapt_A["default"].grad.sum(0, keepdim=True)
        torch.testing.assert_close(one.moe_adapt_A["default"].grad, summed, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="share a down-projection"):
        shared.base_model.freeze_experts([0])


def test_lora_mixer_on_a_state_space_model(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    def mamba():
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
        return MambaForCausalLM(config)

    config = RoutedLoraConfig(
        method="lora_mixer", target_modules=["in_proj", "x_proj"], num_experts=3, dropout=0.0
    )
    model = peft.get_peft_model(mamba(), config).train()
    ids = batch(left_padding=0)["input_ids"]
    optimizer = torch.optim.AdamW(trainable(model), lr=0.05)
    for progress in (0.0, 0.1, 0.6, 0.9):
        model.base_model.progress = progress
        loss = (
            model(input_ids=ids, labels=ids, domain_ids=torch.tensor([0, 1])).loss
            + model.base_model.aux_loss()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not model.base_model.uncalled_sites()
    expected = model.eval()(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(mamba(), tmp_path, adapter_name="x").eval()
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    refused = RoutedLoraConfig(method="lora_mixer", target_modules=["out_proj"])
    with pytest.raises(UserError, match="fused kernels"):
        peft.get_peft_model(mamba(), refused)


def test_a_broken_router_is_named_and_padding_alone_is_refused():
    model = adapted("top_k").train()
    model(**batch())
    assert model.base_model.broken_sites() == []
    layer = adapted_layers(model)[2]
    layer.moe_adapt_router__scorer__weight["default"].data[0, 0] = torch.nan
    model(**batch())
    assert model.base_model.broken_sites()[0] == layer.site
    rows = batch()
    rows["attention_mask"] = torch.zeros_like(rows["attention_mask"])
    other = adapted("top_k").train()
    other(**rows)
    with pytest.raises(UserError, match="all tokens of this batch are padding"):
        other.base_model.aux_loss()
