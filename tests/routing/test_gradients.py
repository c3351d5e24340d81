"""Router and bank together against a loop over tokens and experts in plain arithmetic, with all gradients."""

import pytest
import torch

from moe_adapt.experts import ExpertBank
from moe_adapt.routing import SELECTORS, Logits, RouteContext

TOKENS, WIDTH, OUT, EXPERTS, RANK, SCALE = 9, 6, 5, 5, 2, 2.0
FORCED = (3,)
BIAS = (0.3, -0.2, 0.1, -0.4, 0.0)


def shares(z, kept):
    """Softmax over some experts, zero for the others."""
    total = sum(z[e].exp() for e in kept)
    return {e: z[e].exp() / total for e in kept}


def ranked(z):
    values = z.tolist()
    return sorted(range(EXPERTS), key=lambda e: (-values[e], e))


def top_p(z):
    p, kept, mass = z.softmax(-1), [], 0.0
    for e in ranked(z):
        if mass >= 0.75:
            break
        kept.append(e)
        mass += p[e].item()
    return shares(z, kept)


def sparsegen(z):
    v = z / (1 - 0.25)
    for size in range(EXPERTS, 0, -1):
        support = ranked(v)[:size]
        tau = (sum(v[e] for e in support) - 1) / size
        if all((v[e] - tau).item() > 0 for e in support):
            return {e: v[e] - tau for e in support}
    raise AssertionError


def condenser(z):
    p = z.softmax(-1)
    biased = z.detach() + z.new_tensor(BIAS)
    best = [e for e in ranked(biased) if e not in FORCED][: 3 - len(FORCED)]
    return {e: p[e] for e in (*best, *FORCED)}


LITERAL = {
    "dense": ({}, lambda z: shares(z, range(EXPERTS))),
    "top_k": ({"k": 2}, lambda z: shares(z, ranked(z)[:2])),
    "top_p": ({"top_p": 0.75}, top_p),
    "sparsegen": ({"lam": 0.25}, sparsegen),
    "condenser": ({"k": 3}, condenser),
}


def tensors(dtype):
    generator = torch.Generator().manual_seed(3)
    shapes = ((TOKENS, WIDTH), (EXPERTS, RANK, WIDTH), (OUT, EXPERTS, RANK), (EXPERTS, WIDTH), (OUT, WIDTH))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


def loop(name, x, a, b, rows, weight):
    outputs = []
    for token in x:
        y = weight @ token
        for e, gate in LITERAL[name][1](rows @ token).items():
            y = y + SCALE * gate * (b[:, e] @ (a[e] @ token))
        outputs.append(y)
    return torch.stack(outputs)


def routed(name, x, a, b, rows, weight, sparse):
    z = x @ rows.t()
    logits = Logits(z, z)
    if name == "condenser":
        forced = torch.zeros(EXPERTS, dtype=torch.bool)
        forced[list(FORCED)] = True
        logits = Logits(z + z.new_tensor(BIAS), z, forced)
    decision = SELECTORS.build({"name": name, **LITERAL[name][0]})(logits, RouteContext())
    index = None
    if sparse:
        most = int(decision.selected.sum(-1).max())
        picks = decision.selected.float().topk(most)
        index = picks.indices.masked_fill(picks.values == 0, -1)
    return ExpertBank(a, b, SCALE)(x, decision.gates, x @ weight.t(), index)


@pytest.mark.parametrize("sparse", [False, True], ids=["stacked", "index"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", LITERAL)
def test_the_mixture_and_its_gradients_equal_a_literal_loop(name, dtype, tolerance, sparse):
    inputs, same = tensors(dtype), tensors(dtype)
    expected, found = loop(name, *same), routed(name, *inputs, sparse)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    signal = torch.linspace(-1, 1, TOKENS * OUT, dtype=dtype).view(TOKENS, OUT)
    (found * signal).sum().backward()
    (expected * signal).sum().backward()
    for one, other in zip(inputs, same, strict=True):
        assert one.grad.any()
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=10 * tolerance)
