"""Losses on the experts themselves: preserve and router coupling (ERC)."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import PreserveLoss, RouterCouplingLoss, SiteExperts
from moe_adapt.routing.losses.router_coupling import coupling_loss, proxies


def site(seed=0, start=True, **options):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(3, 2, 6, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    rows = torch.randn(3, 6, generator=generator, dtype=torch.float64).requires_grad_()
    blank = (torch.full_like(a, torch.nan), torch.full_like(b, torch.nan)) if start else None
    settings = dict(site="s", a=a, b=b, scale=2.0, uids=["0", "1", "2"], rows=rows, start=blank)
    return SiteExperts(**settings | options)


def moved(old, change_a, change_b):
    return SiteExperts(
        old.site,
        (old.a + change_a).detach().requires_grad_(),
        (old.b + change_b).detach().requires_grad_(),
        old.scale,
        old.uids,
        old.rows,
        old.start,
    )


def test_the_start_is_taken_when_its_time_comes():
    here, loss = site(), PreserveLoss(since=0.5)
    assert float(loss([here], 0.4)) == 0 and here.start[0].isnan().all()
    assert float(loss([here], 0.5)) == 0 and torch.equal(here.start[0], here.a)
    assert float(loss([moved(here, 0.5, 0.0)], 0.9)) == pytest.approx(0.25 * here.a.numel())


def test_only_the_named_experts_are_held():
    here, loss = site(), PreserveLoss(experts=["1"], since=0.0)
    loss([here], 0.0)
    assert float(loss([moved(here, 0.5, 0.0)], 0.0)) == pytest.approx(0.25 * here.a[0].numel())
    with pytest.raises(UserError, match="no layer has such an expert"):
        PreserveLoss(experts=["x"], since=0.0)([here], 0.0)


def test_the_delta_form_knows_no_gauge_and_is_the_distance_of_weights():
    here, loss = site(), PreserveLoss(space="delta", since=0.0)
    loss([here], 0.0)
    gauge = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    same = moved(
        here, torch.linalg.inv(gauge) @ here.a - here.a, torch.einsum("oer,rq->oeq", here.b, gauge) - here.b
    )
    assert float(loss([same], 1.0)) == pytest.approx(0, abs=1e-9)
    other = moved(here, 0.1, -0.2)
    delta = lambda s: torch.einsum("oer,erd->eod", s.b, s.a)  # noqa: E731
    expected = 4 * (delta(other) - delta(here)).square().sum()
    assert float(loss([other], 1.0)) == pytest.approx(float(expected))


def test_coupling_is_zero_when_each_expert_answers_its_own_row():
    a = torch.eye(6, dtype=torch.float64).reshape(3, 2, 6)
    rows = torch.stack([a[i].sum(0) for i in range(3)])
    assert float(coupling_loss(a, rows, 1.0, normalize=False)) == 0
    assert float(coupling_loss(a[[1, 2, 0]], rows, 1.0, normalize=False)) > 0


def test_proxies_are_nearest_to_their_own_row():
    torch.manual_seed(0)
    rows = torch.randn(8, 16)
    for _ in range(5):
        assert torch.equal(torch.cdist(proxies(rows), rows).argmin(-1), torch.arange(8))


def test_coupling_reaches_rows_and_experts():
    torch.manual_seed(0)
    here = site(start=False)
    RouterCouplingLoss()([here], 0.0).backward()
    assert here.rows.grad.abs().sum() > 0 and here.a.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "options", [{"rows": None}, {"a": torch.zeros(3, 2, 6)}, {"a": torch.zeros(1, 2, 6, requires_grad=True)}]
)
def test_coupling_needs_rows_and_experts_of_their_own(options):
    with pytest.raises(UserError, match="needs a linear scorer"):
        RouterCouplingLoss()([site(start=False, **options)], 0.0)
