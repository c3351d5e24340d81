"""CLS-first evaluation against the dense form: outputs and all gradients."""

import copy

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners.care.block import CareBlock, CareOptions, Scope, choose_routers
from moe_adapt.learners.care.bottleneck import BottleneckBank, Folded
from moe_adapt.learners.care.perceptrons import Perceptrons
from moe_adapt.learners.care.reference import dense_forward, expert_output
from moe_adapt.learners.care.routers import top_k_gates
from tests.learners.care.blocks import random_block, random_input

SIZES = [3, 2, 3, 5, 2, 3, 4]


def results(forward, block, scope, x):
    x = x.detach().clone().requires_grad_()
    y = forward(x, x[:, 0], scope, 0)
    parameters = dict(block.named_parameters())
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * weights).sum(), [x, *parameters.values()], allow_unused=True)
    zero = [x, *parameters.values()]
    return y.detach(), [torch.zeros_like(z) if g is None else g for g, z in zip(grads, zero, strict=True)]


def assert_equals_dense(block, scope, x=None):
    x = random_input() if x is None else x
    ours = results(block, block, scope, x)
    theirs = results(lambda *args: dense_forward(block, *args), block, scope, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_routers", [1, 2, 3])
@pytest.mark.parametrize("top_k", [1, 3, 10])
@pytest.mark.parametrize("forced", [True, False])
def test_equals_the_dense_form(tasks, num_routers, top_k, forced):
    block = random_block(SIZES[:tasks], num_routers=num_routers, top_k=top_k)
    assert_equals_dense(block, Scope(tasks, forced))


@pytest.mark.parametrize(
    "options",
    [
        {"router": "keys", "key_rank": 4},
        {"layer_norm": False},
        {"shared": "none"},
        {"shared": "ema"},
        {"average_routers": True},
        {"normalize_entropy": True},
        {"force_current_expert": True},
        {"force_current_expert": True, "top_k": 1},
    ],
    ids=str,
)
def test_every_option_equals_the_dense_form(options):
    block = random_block(SIZES, **options)
    assert_equals_dense(block, Scope(7, True))
    assert_equals_dense(block.eval(), Scope(7, False))


def test_an_earlier_scope_sees_earlier_triplets_only():
    block = random_block(SIZES)
    early = random_block(SIZES[:4])
    early.experts.freeze(), early.perceptrons.freeze(), early.routers.freeze()
    x = random_input().detach()
    for name in ("experts", "perceptrons", "routers"):
        mine, other = getattr(block, name), getattr(early, name)
        for tensor in mine.tensors:
            rows = len(other.frozen(tensor))
            getattr(other, f"frozen_{tensor}").copy_(mine.whole(tensor)[:rows])
    early.shared.load_state_dict(block.shared.state_dict())
    early.experts.changed()
    torch.testing.assert_close(
        block(x, x[:, 0], Scope(4, True)), early(x, x[:, 0], Scope(4, True)), rtol=0, atol=1e-12
    )


def test_equals_the_dense_form_in_float32_at_many_tasks():
    block = random_block([2] * 40, width=16, dtype=torch.float32).eval()
    x = random_input(batch=8, tokens=6, width=16, dtype=torch.float32).detach()
    torch.testing.assert_close(
        block(x, x[:, 0], Scope(40, False)),
        dense_forward(block, x, x[:, 0], Scope(40, False)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_mixture_does_not_depend_on_the_batch():
    block = random_block(SIZES).eval()
    x = random_input(batch=6).detach()
    whole = block(x, x[:, 0], Scope(7, False))
    alone = torch.cat([block(row[None], row[None, 0], Scope(7, False)) for row in x])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)


def test_folding_is_exact():
    bank = random_block([2, 2, 2]).experts
    x = random_input().detach()
    rows = bank.folded().rows(bank.normalized(x[:, 0]))
    for expert in range(3):
        torch.testing.assert_close(
            rows[:, expert], expert_output(bank, expert, x[:, 0]), rtol=1e-12, atol=1e-12
        )


def test_the_folded_form_follows_its_tensors():
    block = random_block([2, 2])
    block.freeze()
    first = block.experts.folded()
    assert block.experts.folded().down is first.down
    state = {key: value * 2 for key, value in block.experts.state_dict().items()}
    block.experts.load_state_dict(state)
    assert not torch.equal(block.experts.folded().up, first.up)


def test_a_new_triplet_leaves_the_stream_bit_equal_at_the_first_task():
    block = CareBlock(8, CareOptions(rank=3))
    block.grow(4)
    x = random_input(dtype=torch.float32)
    assert torch.equal(block(x, x[:, 0], Scope(1, True)), torch.zeros_like(x))


def test_the_first_router_never_learns():
    block = random_block([3])
    x = random_input()
    block(x, x[:, 0], Scope(1, True)).sum().backward()
    assert not block.routers.new("weight").grad.any()
    assert block.experts.new("down").grad.any()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_old_triplets_stay_bit_identical(optimizer):
    block = random_block(SIZES[:3], dtype=torch.float32)
    frozen = {name: value.clone() for name, value in block.named_buffers()}
    steps = optimizer(block.parameters(), lr=0.1, weight_decay=0.1)
    x = random_input(dtype=torch.float32)
    for _ in range(3):
        steps.zero_grad()
        block(x, x[:, 0], Scope(3, True)).square().sum().backward()
        steps.step()
    for name, value in block.named_buffers():
        assert torch.equal(value, frozen[name]), name
    before = {name: value.detach().clone() for name, value in block.named_parameters()}
    block.freeze()
    assert list(block.parameters()) == []
    for name, value in before.items():
        module, _, tensor = name.rpartition(".new_")
        rows = getattr(block.get_submodule(module), f"frozen_{tensor}")[-len(value) :]
        assert torch.equal(rows, value), name


def test_gates():
    block = random_block(SIZES).eval()
    x = random_input(batch=20).detach()
    block(x, x[:, 0], Scope(7, False))
    decision = block.decision
    assert ((decision.gates > 0).sum(dim=1) <= 6).all()
    torch.testing.assert_close(decision.gates.sum(dim=1), torch.full((20,), 2.0).double())
    highest = decision.chosen.amax(dim=1, keepdim=True)
    assert not decision.gates[torch.arange(7).expand(20, -1) > highest].any()


def test_top_k_gates_by_hand():
    logits = torch.tensor([[[0.0, float("-inf"), float("-inf")], [1.0, 2.0, 0.0]]])
    one, two = torch.tensor([1.0, 2.0]).softmax(0)
    torch.testing.assert_close(top_k_gates(logits, 2), torch.tensor([[1.0 + one, two, 0.0]]))
    forced = torch.tensor([[[3.0, 2.0, 0.0]]])
    kept = torch.tensor([3.0, 0.0]).softmax(0)
    expected = torch.tensor([[kept[0], 0.0, kept[1]]])
    torch.testing.assert_close(top_k_gates(forced, 2, keep_newest=True), expected)


def test_choose_routers():
    entropies = torch.tensor([[0.5, 0.1, 0.9]])
    assert choose_routers(entropies, 2, False).tolist() == [[1, 0]]
    assert choose_routers(entropies, 2, True).tolist() == [[2, 1]]
    assert choose_routers(entropies, 5, False).tolist() == [[1, 0, 2]]


def entropies_of(logits, normalize):
    """Entropies of perceptrons that output the given logits whatever they read."""
    perceptrons = Perceptrons(4)
    for values in logits:
        perceptrons.grow(len(values))
        with torch.no_grad():
            perceptrons.new_weight.zero_()
            perceptrons.new_bias.copy_(torch.tensor(values))
    return perceptrons.entropies(torch.randn(1, len(logits), 4), normalize)[0]


def test_entropies_by_hand():
    raw = entropies_of([[0.0] * 3, [0.0] * 100, [50.0, 0.0]], normalize=False)
    torch.testing.assert_close(raw, torch.tensor([1.0986, 4.6052, 0.0]), rtol=1e-4, atol=1e-4)
    scaled = entropies_of([[0.0] * 3, [0.0] * 100, [1.0]], normalize=True)
    torch.testing.assert_close(scaled, torch.ones(3), rtol=1e-4, atol=1e-4)


def test_dropout_hits_the_routing_row_and_its_token_alike():
    block = random_block([2, 3], dtype=torch.float32, dropout=0.5, num_routers=1, shared="none").train()
    block.freeze()
    x = random_input(batch=40, dtype=torch.float32).detach()
    torch.manual_seed(3)
    output = block(x, x[:, 0], Scope(1, True), 0)
    torch.testing.assert_close(output[:, 0], block.decision.row)
    assert not torch.allclose(output, block.eval()(x, x[:, 0], Scope(1, True), 0))


def test_dropout_keeps_the_mean():
    block = random_block([2], dtype=torch.float32, dropout=0.3).train()
    x = random_input(batch=1, dtype=torch.float32).detach().expand(3000, -1, -1)
    mean = block(x, x[:, 0], Scope(1, True), 0).mean(0)
    torch.testing.assert_close(mean, block.eval()(x[:1], x[:1, 0], Scope(1, True), 0)[0], rtol=0.1, atol=0.15)


@pytest.mark.parametrize("router", ["triangular", "keys"])
def test_state_of_another_task_loads(router):
    trained = random_block(SIZES, router=router)
    fresh = random_block([2], router=router)
    fresh.load_state_dict(trained.state_dict())
    x = random_input().detach()
    assert torch.equal(trained(x, x[:, 0], Scope(7, True)), fresh(x, x[:, 0], Scope(7, True)))
    assert {n: p.shape for n, p in fresh.named_parameters()} == {
        n: p.shape for n, p in trained.named_parameters()
    }


def test_the_slow_shared_expert_follows_the_fast_one():
    block = random_block([2, 2], shared="ema", ema_decay=0.9)
    slow = {name: block.shared.frozen(name).clone() for name in block.shared.tensors}
    block.after_step()
    for name, old in slow.items():
        fast = getattr(block.fast, f"new_{name}")
        torch.testing.assert_close(block.shared.frozen(name), 0.9 * old + 0.1 * fast)
    kept = copy.deepcopy(block.shared.state_dict())
    block.freeze()
    block.after_step()
    torch.testing.assert_close(block.shared.state_dict(), kept, rtol=0, atol=0)
    assert block.fast.num_experts == 0


@pytest.mark.parametrize(("init", "used"), [("mean_previous", 3), ("mean_but_last", 2)])
def test_a_new_expert_starts_at_the_mean(init, used):
    block = random_block([2, 2, 2], expert_init=init)
    block.grow(2)
    for name in block.experts.tensors:
        torch.testing.assert_close(
            block.experts.new(name).detach()[0], block.experts.frozen(name)[:used].mean(0)
        )


def test_a_fresh_expert_outputs_zero():
    bank = BottleneckBank(8, 3)
    bank.append(bank.fresh())
    folded = bank.folded()
    assert isinstance(folded, Folded)
    assert not folded.rows(torch.randn(2, 8)).any()


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"dropout": 1.0}, {"router": "full"}, {"shared": "slow"}, {"expert_init": "zero"}],
)
def test_bad_options(options):
    with pytest.raises(UserError):
        CareOptions(**options)


def test_the_shared_expert_may_drop_hidden_units_while_it_learns():
    block = random_block(SIZES[:1], shared_dropout=0.5).train()
    x, scope = random_input(), Scope(1, forced=True)
    plain = copy.deepcopy(block).eval()(x, x[:, 0], scope, 0)
    torch.manual_seed(0)
    drawn = torch.stack([block(x, x[:, 0], scope, 0) for _ in range(600)])
    spread = drawn.std(dim=0)
    assert spread.max() > 0.01
    assert ((drawn.mean(dim=0) - plain).abs() <= 6 * spread / 600**0.5 + 1e-9).all()
    assert torch.equal(block.eval()(x, x[:, 0], scope, 0), plain)


def test_a_dropout_of_one_is_refused():
    with pytest.raises(UserError, match="shared_dropout"):
        CareOptions(shared_dropout=1.0)


def test_growing_tensors_take_rows_from_a_state_but_no_other_width():
    bank, other = BottleneckBank(4, 2), BottleneckBank(4, 2)
    for _ in range(2):
        other.append(other.fresh())
    bank.load_state_dict(other.state_dict())
    assert bank.num_experts == 2
    bank.load_state_dict({}, strict=False)
    assert bank.num_experts == 2
    wide = BottleneckBank(6, 2)
    wide.append(wide.fresh())
    with pytest.raises(RuntimeError, match="size mismatch"):
        bank.load_state_dict(wide.state_dict())
    assert bank.frozen("down").shape[1:] == (2, 4)
