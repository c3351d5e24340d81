"""Backbones whose linear layers are held in four or eight bits (bitsandbytes), on the CPU and on GPUs.

Four bits are NF4 (QLoRA, arXiv 2305.14314), eight are LLM.int8() (arXiv 2208.07339), which computes in half
precision. Weights are quantised while they are loaded; embeddings, norms, the head and a pooler stay in
floating point. The adapter is trained in float32 beside them. A checkpoint or an export holds the adapter
alone: the base is quantised anew, to the same bits, wherever it is loaded.
"""

import logging
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig

from moe_adapt.errors import UserError
from moe_adapt.extras import require

__all__ = ["Quantize", "keep_weights", "loading_options"]

#: How the frozen linear layers are held; None for floating point.
Quantize = Literal["4bit", "8bit"]


def loading_options(
    auto: Any, where: str, quantize: Quantize | None, dtype: torch.dtype, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to quantise a model.

    Args:
        auto: An auto class of transformers.
        where: Name on the Hub, or folder.
        quantize: How to hold the linear layers; None for nothing.
        dtype: Type in which the layers compute.
        options: The other arguments of ``from_pretrained``.

    Raises:
        UserError: If bitsandbytes is not installed, or the weights come from a GGUF file.
    """
    if quantize is None:
        return {}
    if options.get("gguf_file"):
        raise UserError(
            "a GGUF file is quantised already, and read as floats: leave quantize or gguf_file out."
        )
    require(f"--model.quantize {quantize}", "bitsandbytes")
    if quantize == "8bit":  # it computes in half precision, and would say so at every layer of every step
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    kept = _kept(auto, where, options)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if quantize == "4bit" else {}
    config = BitsAndBytesConfig(
        load_in_4bit=quantize == "4bit",
        load_in_8bit=quantize == "8bit",
        llm_int8_skip_modules=kept,
        **four,
    )
    return {"quantization_config": config}


def keep_weights(model: nn.Module) -> None:
    """Keep four-bit weights as they were quantised.

    On processors with AVX-512 BF16 bitsandbytes packs them anew in the first evaluation, which rounds their
    scales: the base would no longer be the one that a checkpoint knows.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _kept(auto: Any, where: str, options: dict[str, Any]) -> list[str]:
    """Return the modules that stay in floating point: all outside the shared trunk, and poolers."""
    config = AutoConfig.from_pretrained(where, **{k: v for k, v in options.items() if k == "num_labels"})
    with torch.device("meta"):
        model = auto.from_config(config)
    trunk = model.base_model_prefix
    outside = [name for name, _ in model.named_children() if name != trunk] if hasattr(model, trunk) else []
    poolers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]
    return [*outside, *poolers]
