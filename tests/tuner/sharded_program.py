"""One of two processes: train sharded, compare with one process, save, resume. Run by test_sharded.py."""

import copy
import sys
from pathlib import Path
from unittest.mock import patch

ROOT, RANK, FOLDER = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, ROOT)

import peft  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from tiny import adapted, batch, llama  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from moe_adapt.tuner.sharded import full_adapter_state, save_sharded, shard_blocks  # noqa: E402

dist.init_process_group("gloo", init_method=f"file://{FOLDER / 'meet'}", rank=RANK, world_size=2)
OWN = slice(RANK, RANK + 1)
WHOLE = StateDictOptions(full_state_dict=True)
MESH = init_device_mesh("cpu", (2,))
STEPS = [[batch(rows=2, left_padding=padding) for padding in pair] for pair in ((1, 4), (2, 0), (3, 1))]


def built(method: str, frozen: bool, checkpointing: bool) -> peft.PeftModel:
    model = adapted(method)
    if frozen:
        model.base_model.freeze_experts([0, 2])
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def optimizer_of(model: peft.PeftModel) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.base_model.follow(optimizer)
    return optimizer


def train(model: peft.PeftModel, steps: list, own: slice, optimizer: torch.optim.Optimizer) -> None:
    for inputs in steps:
        mine = inputs[own]
        for one in mine:
            loss = model(**one).loss + 10 * model.base_model.aux_loss()
            (loss / len(mine)).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_alone(model: peft.PeftModel, steps: list) -> None:
    with patch("torch.distributed.is_initialized", return_value=False):  # nobody to sum statistics with
        train(model, steps, slice(None), optimizer_of(model))


def equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and found
    for name, tensor in expected.items():
        close = torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6)
        assert close, f"{method}: {name} differs by {(found[name] - tensor).abs().max()}"


for method, frozen, checkpointing in (
    ("top_k", False, False),
    ("dynmole", True, False),
    ("condenser_bias", False, True),
):
    alone = built(method, frozen, checkpointing)
    before = full_adapter_state(alone)
    train_alone(alone, STEPS)
    expected = full_adapter_state(alone)
    sharded = shard_blocks(built(method, frozen, checkpointing), mesh=MESH)
    pieces = [p for p in sharded.parameters() if p.requires_grad]
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in pieces)
    optimizer = optimizer_of(sharded)
    train(sharded, STEPS[:2], OWN, optimizer)
    half = full_adapter_state(sharded)
    save_sharded(sharded, FOLDER / method)
    moments = copy.deepcopy(get_optimizer_state_dict(sharded, optimizer, options=WHOLE))
    train(sharded, STEPS[2:], OWN, optimizer)
    found = full_adapter_state(sharded)
    equal(found, expected)
    moved = [name for name in expected if not torch.equal(expected[name], before[name])]
    assert any("router" in name for name in moved) and any("moe_adapt_B." in name for name in moved)
    held = [name for name in expected if "_frozen" in name]
    assert bool(held) == frozen and all(torch.equal(found[name], before[name]) for name in held)
    again = peft.PeftModel.from_pretrained(llama(), FOLDER / method, is_trainable=True).train()
    for name, tensor in again.state_dict().items():
        if name in half:
            assert torch.equal(tensor, half[name]), name
    if checkpointing:
        again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    resumed = shard_blocks(again, mesh=MESH)
    optimizer = optimizer_of(resumed)
    set_optimizer_state_dict(resumed, optimizer, moments, options=WHOLE)
    train(resumed, STEPS[2:], OWN, optimizer)
    equal(full_adapter_state(resumed), found)
    print(f"{method}: equal", flush=True)

dist.destroy_process_group()
