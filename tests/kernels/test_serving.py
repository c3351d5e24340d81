"""Mixed batches against each adapter by itself."""

import pytest
import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.kernels.serving import AdapterStack, mixed_batch, stack_factors

RANKS = (1, 4, 3)


def adapters(dtype=torch.float64) -> list[tuple[Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(rank, 6, generator=generator).to(dtype).requires_grad_(),
            torch.randn(5, rank, generator=generator).to(dtype).requires_grad_(),
            0.5 * rank,
        )
        for rank in RANKS
    ]


@pytest.mark.parametrize("impl", ["auto", "reference", "stacked"])
def test_every_token_gets_its_own_adapter(impl):
    generator = torch.Generator().manual_seed(1)
    x, base = (torch.randn(9, width, generator=generator, dtype=torch.float64) for width in (6, 5))
    ids = torch.tensor([0, 1, 2, -1, 2, 2, 0, 1, -1], dtype=torch.int32)
    loras = adapters()
    found = mixed_batch(x, base, AdapterStack.of(loras), ids, impl)
    alone = []
    for token, place in enumerate(ids.tolist()):
        a, b, scale = loras[place]
        alone.append(base[token] + scale * (b @ (a @ x[token])) if place >= 0 else base[token])
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-6, atol=1e-6)  # scales are fp32
    assert torch.equal(found[ids < 0], base[ids < 0])


def test_gradients_reach_every_adapter_of_the_batch_and_no_other():
    loras = adapters()
    ids = torch.tensor([0, 2, 2])
    y = mixed_batch(torch.ones(3, 6).double(), torch.zeros(3, 5).double(), AdapterStack.of(loras), ids)
    found = torch.autograd.grad(y.sum(), [factor for a, b, _ in loras for factor in (a, b)])
    assert [bool(gradient.any()) for gradient in found] == [True, True, False, False, True, True]
    assert [gradient.shape for gradient in found] == [factor.shape for a, b, _ in loras for factor in (a, b)]


def test_padding_takes_the_widest_dtype():
    (a, b, _), (other_a, other_b, _) = adapters(torch.float16)[0], adapters(torch.float32)[1]
    down, up = stack_factors([(a[None], b[:, None]), (other_a[None], other_b[:, None])])
    assert down.dtype == up.dtype == torch.float32
    assert down.shape == (2, 4, 6) and not down[0, 1:].any() and not up[:, 0, 1:].any()


def test_adapters_of_other_layers_are_refused():
    with pytest.raises(UserError, match="factors"):
        AdapterStack.of([*adapters(), (torch.ones(2, 7), torch.ones(5, 2), 1.0)])


def test_ids_are_one_per_token():
    with pytest.raises(UserError, match="one id per token"):
        mixed_batch(
            torch.ones(3, 6), torch.ones(3, 5), AdapterStack.of(adapters(torch.float32)), torch.ones(2)
        )
