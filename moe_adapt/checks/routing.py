"""Checks that every scorer and selector passes, ours and yours.

Each raises `AssertionError` with one sentence at the first property that does not hold.
"""

from typing import Any

import torch

from moe_adapt.experts import ExpertBank
from moe_adapt.routing import SCORERS, Logits, RouteContext, Scorer, Selector

__all__ = ["check_scorer", "check_selector"]

_TOKENS, _WIDTH, _EXPERTS = 11, 6, 4


def check_selector(selector: Selector) -> None:
    """Check a selector: shapes, finite gates, zeros outside the selection, no dependence on other tokens.

    Args:
        selector: The selector, already configured.

    Raises:
        AssertionError: If a property does not hold.

    >>> from moe_adapt.routing import DenseSelector
    >>> check_selector(DenseSelector())
    """
    context = RouteContext()
    generator = torch.Generator().manual_seed(0)
    selector.check(_EXPERTS)
    columns = _EXPERTS + selector.nulls
    for scale in (0.1, 1.0, 30.0):
        logits = scale * torch.randn(_TOKENS, columns, generator=generator)
        logits.requires_grad_()
        gates, selected = selector(Logits(logits, logits), context)
        assert gates.shape == selected.shape == (_TOKENS, columns), "gates and selection are [N, E + nulls]"
        assert selected.dtype == torch.bool, "the selection is boolean"
        assert torch.isfinite(gates).all(), "gates are finite"
        assert (gates[~selected] == 0).all(), "gates are zero where an expert is not selected"
        assert (gates[:, _EXPERTS:] == 0).all(), "null experts have gate zero"
        assert gates.dtype == torch.float32, "gates keep the precision of the logits"
        if gates.requires_grad:
            (gradient,) = torch.autograd.grad((gates * torch.arange(columns)).sum(), logits)
            assert torch.isfinite(gradient).all(), "the gradient of the gates is finite"
        row = logits[3:4].detach()
        alone = selector(Logits(row, row), context)
        assert torch.allclose(alone.gates, gates[3:4], atol=1e-6), (
            "a token's gates do not depend on its batch"
        )
    empty = torch.zeros(0, columns)
    assert selector(Logits(empty, empty), context).gates.shape == (0, columns), "no token is a legal batch"
    single = torch.randn(_TOKENS, 1 + selector.nulls, generator=generator)
    gates = selector(Logits(single, single), context).gates
    if selector.unit_gate_for_one_expert:
        assert (gates == 1).all(), "with one expert the gate is exactly 1 (unit_gate_for_one_expert)"


def check_scorer(scorer_cls: type[Scorer], **options: Any) -> None:
    """Check a scorer: shapes, fp32 logits, names that can be stored, repeatable without side effects.

    Args:
        scorer_cls: The class.
        options: Its options beside `in_features` and `num_experts`.

    Raises:
        AssertionError: If a property does not hold.
    """
    name = getattr(scorer_cls, "registered_name", None)
    assert name in SCORERS, "the scorer is registered"
    generator = torch.Generator().manual_seed(0)
    scorer = SCORERS.build({"name": name, **options}, in_features=_WIDTH, num_experts=_EXPERTS).eval()
    bank = ExpertBank(torch.randn(_EXPERTS, 2, _WIDTH), torch.randn(4, _EXPERTS, 2), scale=1.0)
    x = torch.randn(_TOKENS, _WIDTH, generator=generator)
    ids = torch.randint(100, (1, _TOKENS), generator=generator)
    before = {key: value.clone() for key, value in scorer.state_dict().items()}
    logits = scorer(x, RouteContext(input_ids=ids), bank)
    assert logits.shape == (_TOKENS, _EXPERTS), "logits are [N, E]"
    assert logits.dtype == torch.float32, "logits are fp32"
    assert torch.isfinite(logits).all(), "logits are finite"
    again = scorer(x, RouteContext(input_ids=ids), bank)
    assert torch.equal(logits, again), "scoring twice gives the same logits"
    after = scorer.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "evaluation changes no tensor"
    assert all("__" not in key for key in before), "tensor names have no double underscore"
    alone = scorer(x[2:3], RouteContext(input_ids=ids[:, 2:3]), bank)
    assert torch.allclose(alone, logits[2:3], atol=1e-5), "a token's logits do not depend on its batch"
    empty = scorer(x[:0], RouteContext(input_ids=ids[:, :0]), bank)
    assert empty.shape == (0, _EXPERTS), "no token is a legal batch"
    context = RouteContext(input_ids=ids, training=True)
    training = scorer.train()(x, context, bank)
    assert training.shape == (_TOKENS, _EXPERTS) and torch.isfinite(training).all(), "it trains"
    if scorer.input_independent:
        assert torch.equal(logits[:1].expand_as(logits), logits), "input_independent logits are all equal"
