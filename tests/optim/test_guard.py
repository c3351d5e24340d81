"""The guard: retained inputs keep their selection while everything else learns."""

import pytest
import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.optim import GuardUpdate, UpdateHook
from moe_adapt.optim.guard import feasible_share, select_top, selection_stability

WIDTH, EXPERTS, K = 64, 8, 2


def inputs(seed, rows, rank=12):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, rank, generator=generator)
        @ torch.randn(rank, WIDTH, generator=generator)
        / rank**0.5
    )


def train(guard, optimizer, steps=40):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, generator=generator) / WIDTH**0.5)
    start, retained, new = weight.detach().clone(), inputs(1, 200), inputs(2, 200)
    hook = UpdateHook({} if guard is None else {"router": (weight, [guard])})
    if guard is not None:
        guard.retain(retained, weight)
    stepper = optimizer([weight])
    hook.attach(stepper)
    target = torch.randint(EXPERTS, (len(new),), generator=generator)
    losses = []
    for _ in range(steps):
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(new @ weight.t(), target)
        loss.backward()
        stepper.step()
        losses.append(float(loss.detach()))
    return selection_stability(retained, start, weight.detach(), K), weight.detach() - start, losses


ADAMW = lambda p: torch.optim.AdamW(p, lr=2e-2, weight_decay=0.1)  # noqa: E731
SGD = lambda p: torch.optim.SGD(p, lr=0.5)  # noqa: E731


@pytest.mark.parametrize("optimizer", [ADAMW, SGD])
def test_selection_is_stable_and_training_goes_on(optimizer):
    unguarded, raw, _ = train(None, optimizer)
    stable, change, losses = train(GuardUpdate(k=K), optimizer)
    assert unguarded < 0.7
    assert stable == 1.0
    assert change.norm() > 0.2 * raw.norm()
    assert losses[-1] < losses[0]


def test_margins_hold_over_many_steps():
    stable, _, _ = train(GuardUpdate(k=K, sweeps=1), ADAMW, steps=200)
    assert stable == 1.0


def test_unlearning_cannot_hide_in_the_router():
    """Ascend on what is to be forgotten: its loss rises, the retained inputs' selection stays."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, generator=generator) / WIDTH**0.5)
    start = weight.detach().clone()
    retained, forget = inputs(1, 200), inputs(5, 100)
    guard = GuardUpdate(k=K)
    guard.retain(retained, weight)
    stepper = ADAMW([weight])
    UpdateHook({"router": (weight, [guard])}).attach(stepper)
    target = (forget @ start.t()).argmax(-1)
    losses = []
    for _ in range(30):
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(forget @ weight.t(), target)
        (-loss).backward()
        stepper.step()
        losses.append(float(loss.detach()))
    assert losses[-1] > losses[0] + 0.1
    assert selection_stability(retained, start, weight.detach(), K) == 1.0


def test_many_retained_inputs_forbid_everything_they_span():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(EXPERTS, WIDTH, generator=generator)
    guard = GuardUpdate(k=K)
    guard.retain(torch.randn(2000, WIDTH, generator=generator), weight)
    delta = guard.after_step(torch.randn(EXPERTS, WIDTH, generator=generator), weight)
    assert delta.abs().max() < 1e-4


def test_state_round_trip_and_bytes():
    guard = GuardUpdate(k=K)
    assert guard.nbytes == 0 and guard.state() == {}
    weight = torch.randn(EXPERTS, WIDTH)
    guard.retain(inputs(1, 50), weight)
    other = GuardUpdate(k=K)
    other.load_state(guard.state())
    delta = torch.randn(EXPERTS, WIDTH)
    assert torch.equal(other.after_step(delta, weight), guard.after_step(delta, weight))
    assert guard.nbytes >= 50 * WIDTH * 4


def test_nothing_to_guard_when_all_are_selected():
    with pytest.raises(UserError, match="smaller k"):
        GuardUpdate(k=EXPERTS).retain(inputs(1, 5), torch.randn(EXPERTS, WIDTH))


def test_feasible_share_by_hand():
    start, change = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -1.0]])
    low, high = torch.tensor([[-1.0, -0.25]]), torch.tensor([[1.0, 1.0]])
    assert feasible_share(start, change, low, high).item() == 0.25
    assert feasible_share(start, 0 * change, low, high).item() == 1.0


def test_ties_go_to_the_lower_index():
    assert select_top(torch.zeros(1, 3), 2).tolist() == [[True, True, False]]


def test_a_selected_score_does_not_fall_below_the_others():
    """Nothing is projected away (`cutoff`), so that the lower bound alone protects the selection."""
    weight, rows = torch.eye(3), torch.tensor([[1.0, 0.4, 0.0]])
    guard = GuardUpdate(k=1, margin=0.2, cutoff=1e9)
    guard.retain(rows, weight)
    delta = guard.after_step(torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), weight)
    score = ((weight + delta) @ rows.t()).flatten()
    assert score[0].item() == pytest.approx(0.9), "half a margin below where it was, and not 0"
    up = guard.after_step(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), weight)
    assert (weight + up)[1] @ rows[0] <= 0.8 + 1e-6, "a margin below the selected one"


def test_bounds_share_a_gap_that_is_smaller_than_the_margin():
    guard = GuardUpdate(k=1, margin=1.0)
    guard.retain(torch.tensor([[1.0, 0.4]]), torch.eye(2))
    assert guard.high.flatten().tolist() == pytest.approx([float("inf"), 0.7])
    assert guard.low.flatten().tolist() == pytest.approx([0.85, -float("inf")])
