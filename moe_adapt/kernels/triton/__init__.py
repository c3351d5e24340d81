"""Triton kernels of the batched-LoRA operator, for CUDA GPUs.

`shrink` goes into rank space and `expand` out of it, forward and backward; `gradient` sums weight gradients;
`decode` serves a few tokens. Nothing here imports triton before the first launch.
"""

from moe_adapt.kernels.triton.implementation import forward

__all__ = ["forward"]
