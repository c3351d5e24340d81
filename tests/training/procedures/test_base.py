"""What procedures share: updates of some parameters, right inside autocast, and only of finite losses."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.training.procedures import update


def stand_in():
    """Two layers, one of the experts and one of the router, with what `update` asks of a module."""
    experts, router = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.AdamW([*experts.parameters(), *router.parameters()], lr=0.1)
    roles = {"experts": [*experts.parameters()], "router": [*router.parameters()]}
    module = SimpleNamespace(
        optimizers=lambda: optimizer,
        lr_schedulers=lambda: None,
        manual_backward=lambda loss: loss.backward(),
        trainable_parameters=lambda: roles,
        global_step=3,
        clipping=None,
    )
    return module, experts, router


def test_a_second_pass_in_one_autocast_region_sees_the_weights_of_the_first_update():
    module, experts, _ = stand_in()
    x = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        first = experts(x)
        update(module, first.float().square().sum())
        second = experts(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second.float(), experts(x), rtol=2e-2, atol=2e-2)


def test_only_the_named_role_moves_and_nothing_on_a_loss_that_is_not_finite():
    module, experts, router = stand_in()
    before = [layer.weight.detach().clone() for layer in (experts, router)]
    x = torch.ones(2, 4)
    update(module, router(experts(x)).sum(), roles=("router",))
    assert torch.equal(experts.weight, before[0]) and not torch.equal(router.weight, before[1])
    now = router.weight.detach().clone()
    with pytest.raises(UserError, match="not finite at step 3"):
        update(module, router(experts(x)).sum() * torch.nan)
    assert torch.equal(router.weight, now)
