"""Write and check a folder that holds one ordinary LoRA, which PEFT and servers open without this package.

PEFT alone reads ranks and scales per layer (`rank_pattern`, `alpha_pattern`). vLLM takes one `lora_alpha / r`
for all layers; converters to GGUF keep `lora_alpha` and divide by the rank of each tensor. So all layers get
one rank, filled up with zeros, `lora_alpha = r`, and the scale of each layer goes into its `B`: then every
reader's scale is one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.hub.load import WEIGHTS_FILE, read_tensors
from moe_adapt.hub.mixture import LowRank

__all__ = ["check_stock_lora", "served_rank", "stock_rank", "write_stock_lora"]

_ROOT = "base_model.model."
#: Values that vLLM accepts as its largest rank; 16 is the default.
_SERVED = (8, 16, 32, 64, 128, 256, 320, 512)


def write_stock_lora(
    folder: Path,
    sites: Mapping[str, LowRank],
    head: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of one LoRA, and open them again.

    Args:
        folder: An existing folder.
        sites: The LoRA of each layer, by its path in the base model.
        head: Tensors of modules that were trained whole, under the names that PEFT saves them by.
        settings: More fields of `peft.LoraConfig`: ``task_type``, ``modules_to_save``,
            ``base_model_name_or_path``.

    Raises:
        UserError: If what was written does not read back.
    """
    rank = stock_rank(sites)
    sites = {path: lora.folded(rank) for path, lora in sites.items()}
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(sites), inference_mode=True, **settings
    )
    config.target_modules = sorted(sites)  # PEFT makes it a set, in whose order it would be saved
    config.save_pretrained(str(folder))
    tensors = dict(head or {})
    for path, lora in sites.items():
        for factor, tensor in zip("AB", lora.stock_factors(), strict=True):
            tensors[f"{_ROOT}{path}.lora_{factor}.weight"] = tensor.contiguous()
    save_file(
        {name: tensors[name].detach().cpu().clone() for name in sorted(tensors)},
        folder / WEIGHTS_FILE,
        {"format": "pt"},
    )
    check_stock_lora(folder, sites)


def stock_rank(sites: Mapping[str, LowRank]) -> int:
    """Return the one rank that all layers of a stock LoRA have: the largest."""
    return max(lora.rank for lora in sites.values())


def served_rank(rank: int) -> int | None:
    """Return what vLLM's ``--max-lora-rank`` must be for an adapter of a rank; None above its largest.

    >>> served_rank(16), served_rank(24), served_rank(600)
    (16, 32, None)
    """
    return next((step for step in _SERVED if step >= rank), None)


def check_stock_lora(folder: Path, sites: Mapping[str, LowRank]) -> None:
    """Let PEFT open the folder on a hollow base of the right shapes, and compare every tensor and scale.

    Args:
        folder: The adapter's folder.
        sites: The LoRA that each layer must have, of one rank.

    Raises:
        UserError: If a tensor or a scale is not what it should be.
    """
    stored = read_tensors(folder)
    config = PeftConfig.from_pretrained(str(folder))
    config.task_type = None  # a task's model class asks for methods that the hollow base has not
    base = _hollow_base(sites, {name: tensor for name, tensor in stored.items() if ".lora_" not in name})
    model = PeftModel.from_pretrained(base, str(folder), config=config)
    live = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = [
        name
        for name in live.keys() | stored.keys()
        if name not in live or name not in stored or not torch.equal(live[name].cpu(), stored[name])
    ]
    for path, lora in sites.items():
        layer: Any = model.get_submodule(_ROOT + path)
        pair = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        scale = layer.scaling["default"]
        factors = lora.stock_factors()
        same = all(torch.equal(live.cpu(), own) for live, own in zip(pair, factors, strict=True))
        if not same or abs(scale - lora.scale) > 1e-6 * abs(lora.scale):
            wrong.append(path)
    if wrong:
        raise UserError(
            f"PEFT does not read {folder} back as it was written ({len(wrong)} differences, such as "
            f"{sorted(wrong)[0]!r}); this is a fault of the export: please report it."
        )


def _hollow_base(sites: Mapping[str, LowRank], head: Mapping[str, Tensor]) -> nn.Module:
    """Return modules at the right paths; the weights of the layers take no memory."""
    root = nn.Module()
    for path, lora in sites.items():
        down, up = lora.stock_factors()
        outputs, inputs = len(up), down.shape[1]
        layer: Any
        if lora.geometry is None:
            layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        else:
            layer = nn.Conv2d(inputs, outputs, lora.geometry.kernel, bias=False, device="meta")
        weight = torch.zeros((), dtype=down.dtype).expand(outputs, *down.shape[1:])
        layer.weight = nn.Parameter(weight)
        parent, _, name = path.rpartition(".")
        setattr(_descend(root, parent), name, layer)
    for name, tensor in head.items():
        parent, _, leaf = name.removeprefix(_ROOT).rpartition(".")
        _descend(root, parent).register_parameter(leaf, nn.Parameter(tensor.clone(), requires_grad=False))
    return root


def _descend(root: nn.Module, path: str) -> nn.Module:
    module = root
    for part in filter(None, path.split(".")):
        if not hasattr(module, part):
            setattr(module, part, nn.Module())
        module = getattr(module, part)
    return module
