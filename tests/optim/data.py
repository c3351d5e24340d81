"""Inputs of two tasks that share a few of their directions and a common mean, and a linear task on each."""

import torch
from torch import Tensor

WIDTH, EXPERTS = 32, 6


def task_inputs(seed: int, rows: int = 400, rank: int = 8, shared: int = 3) -> Tensor:
    """Rows [N, d] on `rank` directions, `shared` of which do not depend on the seed."""
    common = torch.randn(shared, WIDTH, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(rank - shared, WIDTH, generator=generator)
    codes = torch.randn(rows, rank, generator=generator)
    return (codes @ torch.cat([common, own]) + common[0]) / WIDTH**0.5
