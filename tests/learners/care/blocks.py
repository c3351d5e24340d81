"""Small CaRE blocks with random tensors everywhere, trained ones included."""

import torch

from moe_adapt.learners.care.block import CareBlock, CareOptions


def random_block(sizes, width=8, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    settings = {"rank": 3, "shared_rank": 5, "dropout": 0.0, **options}
    block = CareBlock(width, CareOptions(**settings)).to(dtype)
    for classes in sizes:
        block.grow(classes)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.7)
    return block


def random_input(batch=5, tokens=4, width=8, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_()
