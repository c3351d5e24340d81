"""Open a composed adapter in a process of its own, with PEFT alone, and compare to the last bit.

``python -m moe_adapt.demo.reopen ADAPTER BACKBONE PROBE`` prints the largest absolute difference. PROBE is a
safetensors file with a batch and the outputs that the adapter gave for it.
"""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file

import moe_adapt.tuner  # noqa: F401  teaches PEFT the adapter type
from moe_adapt.hub.composition.base import open_base

__all__ = ["difference"]


def difference(adapter: str, backbone: str, probe: str) -> float:
    """Return the largest difference between the stored outputs and those of the adapter as it lies there."""
    tensors = load_file(probe)
    outputs = tensors.pop("outputs")
    model = PeftModel.from_pretrained(open_base(backbone, None), adapter).eval()
    with torch.no_grad():
        return (model(**tensors).last_hidden_state - outputs).abs().max().item()


if __name__ == "__main__":
    print(difference(*sys.argv[1:]))
