"""Token types, assignment guidance and routing separation: values by hand, properties, and starvation."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts import PoolEdit
from moe_adapt.routing import Logits, RouteContext, TokenAssignmentModifier, TopKSelector
from moe_adapt.routing.losses.routing_separation import (
    RoutingSeparationLoss,
    group_mass,
    ramp,
    separation_terms,
)
from moe_adapt.routing.modifiers.expert_groups import ExpertGroups
from moe_adapt.routing.modifiers.token_assignment import warmed_tau
from moe_adapt.routing.records import RecordGroup, RoutingRecord
from moe_adapt.routing.token_types import group_scores, relative_gap, token_types

GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])


def guidance(groups=GROUPS, **options):
    modifier = TokenAssignmentModifier(num_experts=len(groups), **options)
    modifier.expert_groups.copy_(groups)
    return modifier


def scores(rows=200, experts=6, seed=0):
    return torch.rand(rows, experts, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("new", "old", "gap", "kind"),
    [
        (0.52, 0.50, 0.0385, "ambiguous"),
        (0.8, 0.4, 0.5, "new"),
        (0.4, 0.8, 0.5, "old"),
        (-0.1, -0.4, 0.75, "new"),
        (0.0, 0.0, 0.0, "ambiguous"),
    ],
)
def test_types_by_hand(new, old, gap, kind):
    new, old = torch.tensor([new]), torch.tensor([old])
    assert relative_gap(new, old).item() == pytest.approx(gap, abs=1e-3)
    types = token_types(new, old, tau=0.2)
    assert [name for name in types._fields if getattr(types, name).item()] == [kind]


@given(st.integers(0, 2**16), st.floats(0, 0.9))
def test_a_training_token_keeps_exactly_one_group(seed, tau):
    raw = scores(seed=seed)
    masked = guidance(tau=tau)(Logits(raw, raw), raw, RouteContext(training=True))
    finite = masked.select.isfinite()
    newest = GROUPS == 2
    assert (
        (finite[:, newest].all(-1) & ~finite[:, ~newest].any(-1))
        | (finite[:, ~newest].all(-1) & ~finite[:, newest].any(-1))
    ).all()
    assert masked.weight is masked.select
    decision = TopKSelector(k=3)(masked, RouteContext())
    assert torch.isfinite(decision.gates).all()
    torch.testing.assert_close(decision.gates.sum(-1), torch.ones(len(raw)))
    assert not (decision.selected & ~finite).any(), "nothing masked is ever selected"


def test_the_printed_rule_masks_new_experts_only():
    raw = scores()
    both, one = (
        guidance(symmetric=s)(Logits(raw, raw), raw, RouteContext(training=True)).select
        for s in (True, False)
    )
    admitted = both[:, 4:].isfinite().all(-1)
    assert admitted.any() and (~admitted).any()
    assert one[admitted].isfinite().all()
    assert torch.equal(one[~admitted], both[~admitted])


def test_evaluation_and_the_first_task_are_untouched():
    raw = scores()
    logits = Logits(raw, raw)
    assert guidance()(logits, raw, RouteContext()) is logits
    assert guidance(torch.zeros(6, dtype=torch.int64))(logits, raw, RouteContext(training=True)) is logits
    assert guidance(tau_warmup=0.1)(logits, raw, RouteContext(training=True, progress=0.05)) is logits


def test_tau_warms_up():
    assert [warmed_tau(0.2, 0.1, p) for p in (0.0, 0.09, 0.1, 0.15, 0.2, 1.0)] == [
        None,
        None,
        0.0,
        0.1,
        0.2,
        0.2,
    ]
    assert warmed_tau(0.2, 0.0, 0.0) == 0.2


def test_task_mean_of_maxima_by_hand():
    raw = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.5, 0.4]])
    assert [round(value.item(), 6) for value in group_scores(raw, GROUPS)] == [0.5, 0.9]
    assert [round(value.item(), 6) for value in group_scores(raw, GROUPS, "task_mean_max")] == [0.5, 0.6]


@pytest.mark.parametrize(
    ("old_tasks", "group_score", "expected"),
    [
        (1, "max", 0.301),
        (3, "max", 0.090),
        (7, "max", 0.031),
        (3, "task_mean_max", 0.24),
        (7, "task_mean_max", 0.22),
    ],
)
def test_admission_at_the_start_starves_with_old_tasks(old_tasks, group_score, expected):
    """Random rows and isotropic tokens, 16 experts per task, d 256: the rates of our own simulation."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(16 * (old_tasks + 1), 256, generator=generator), dim=-1)
    tokens = torch.nn.functional.normalize(torch.randn(4000, 256, generator=generator), dim=-1)
    groups = torch.arange(old_tasks + 1).repeat_interleave(16)
    types = token_types(*group_scores(tokens @ rows.t(), groups, group_score), tau=0.2)
    assert types.new.float().mean().item() == pytest.approx(expected, abs=0.04)


def record(raw, mask=None, groups=GROUPS):
    return RoutingRecord(
        "site", raw, raw.softmax(-1), raw > 0, mask, scores=raw.clone(), expert_groups=groups
    )


def test_separation_by_hand():
    exc, _ = separation_terms(torch.tensor([0.5]), torch.tensor([0.5]))
    assert exc.item() == 0.25
    # One old expert that holds all old mass: the target is the new mass, and the gradient vanishes.
    new = torch.tensor([0.3], requires_grad=True)
    _, spe = separation_terms(new, 1 - new)
    (gradient,) = torch.autograd.grad(spe.sum(), new)
    assert gradient.item() == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 2**16))
def test_specialisation_only_moves_mass_to_new_experts(seed):
    new, top_old = group_mass(scores(seed=seed), GROUPS == 2, k=4, temperature=0.1)
    assert (1 - top_old >= new - 1e-5).all()
    inside = new.clamp(1e-4, 1 - 1e-4).detach().requires_grad_()
    _, spe = separation_terms(inside, top_old.clamp(max=1 - 1e-4))
    (gradient,) = torch.autograd.grad(spe.sum(), inside)
    assert (gradient <= 1e-3).all()


def test_separation_follows_the_ramp_and_leaves_padding_out():
    assert [ramp(p, 0.5) for p in (0, 0.5, 0.75, 1)] == [0, 0, 0.5, 1]
    loss, raw = RoutingSeparationLoss(), scores(8)
    mask = torch.tensor([True] * 5 + [False] * 3)
    values = {p: loss([RecordGroup([record(raw, mask)], progress=p)]).item() for p in (0.25, 0.75, 1.0)}
    short = loss([RecordGroup([record(raw[:5])])]).item()
    assert values[0.25] == 0
    assert values[0.75] == pytest.approx(short / 2)
    assert values[1.0] == pytest.approx(short) and short > 0
    one = record(raw, groups=torch.zeros(6, dtype=torch.int64))
    assert loss([RecordGroup([one])]).item() == 0
    both = loss([RecordGroup([record(raw), one])]).item()
    assert both == pytest.approx(loss([RecordGroup([record(raw)])]).item() / 2), "the mean is over all sites"


def test_separation_gradient_is_on_the_raw_scores():
    group = RecordGroup([record(scores(8))])
    RoutingSeparationLoss()([group]).backward()
    assert group.scores.grad.abs().sum() > 0 and group.logits.grad is None


@pytest.mark.parametrize(
    "options", [{"tau": 1.0}, {"tau": -0.1}, {"tau_warmup": 1.5}, {"group_score": "mean"}]
)
def test_bad_guidance_options(options):
    with pytest.raises(UserError):
        TokenAssignmentModifier(num_experts=2, **options)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"k": 0}, {"start": 1.0}])
def test_bad_separation_options(options):
    with pytest.raises(UserError):
        RoutingSeparationLoss(**options)


def test_separation_without_groups_is_refused():
    with pytest.raises(UserError, match="expert_groups"):
        RoutingSeparationLoss()([RecordGroup([dataclasses.replace(record(scores(4)), expert_groups=None)])])


def test_groups_follow_the_pool_and_leave_logits_alone():
    modifier, raw = ExpertGroups(num_experts=4), scores(3, experts=4)
    logits = Logits(raw, raw)
    assert modifier(logits, raw, RouteContext(training=True)) is logits
    modifier.edited(PoolEdit.add(2, 2))
    assert modifier.expert_groups.tolist() == [0, 0, 1, 1]
