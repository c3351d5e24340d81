"""Open an exported adapter in a process of its own and compare its logits with those of the trained model.

``python -m moe_adapt.demo.reload ADAPTER BACKBONE PROBE`` prints the largest absolute difference. PROBE is a
safetensors file with a batch and the logits that the trained model gave for it.
"""

import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.training.modules import SequenceClassifier

__all__ = ["compare", "fresh_process", "reload_difference"]


def reload_difference(model: nn.Module, batch: dict[str, Tensor], adapter: Path, backbone: str) -> float:
    """Return the largest difference of a logit between `model` and the adapter opened in a fresh process.

    Args:
        model: The trained model.
        batch: Input ids and attention mask, [B, S] each.
        adapter: Folder of the exported adapter.
        backbone: Folder of the base model.

    Raises:
        UserError: If the process fails, or the logits differ by more than 1e-5.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.eval()
    with torch.inference_mode():
        logits = model(**inputs)
    probe = {**inputs, "logits": logits.clone()}
    difference = fresh_process("moe_adapt.demo.reload", adapter, backbone, probe)
    if difference > 1e-5:
        raise UserError(f"after reloading, logits differ by {difference:.1e}; 1e-5 is allowed.")
    return difference


def fresh_process(module: str, adapter: Path, backbone: str, tensors: dict[str, Tensor]) -> float:
    """Return what ``python -m module ADAPTER BACKBONE PROBE`` prints last.

    Args:
        module: The module to run.
        adapter: Folder of the adapter.
        backbone: Folder of the base model.
        tensors: What the probe holds.

    Raises:
        UserError: If the process fails.
    """
    probe = adapter.with_name(f".{adapter.name}.probe.safetensors")
    save_file(tensors, probe)
    command = [sys.executable, "-m", module, str(adapter), backbone, str(probe)]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    finally:
        probe.unlink()
    if result.returncode:
        raise UserError(
            f"the exported adapter cannot be opened again: {result.stderr.strip().splitlines()[-1]}"
        )
    return float(result.stdout.split()[-1])


def compare(adapter: str, backbone: str, probe: str) -> float:
    """Return the largest difference between the stored logits and those of the reloaded adapter."""
    tensors = load_file(probe)
    logits = tensors.pop("logits")
    base = SequenceClassifier.base_model(backbone, num_classes=logits.shape[1])
    model = PeftModel.from_pretrained(base, adapter).eval()
    with torch.inference_mode():
        return (model(**tensors) - logits).abs().max().item()


if __name__ == "__main__":
    print(compare(*sys.argv[1:]))
