"""The batched-LoRA operator: many gated LoRA experts on one linear layer, for training and for serving.

Needs torch alone; Triton is used where it is installed.
"""

from moe_adapt.kernels import grouped, reference, stacked, triton
from moe_adapt.kernels.operator import routed_lora

__all__ = ["grouped", "reference", "routed_lora", "stacked", "triton"]
