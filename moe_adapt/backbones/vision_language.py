"""A small vision-language model in the form of LLaVA: a vision tower, a projector, a language model.

It is built from a configuration or from pretrained parts, and runs through transformers' own LLaVA classes.
The projector between pretrained parts is drawn with a seed of its own, so the same parts give the same model;
adapters on its two layers (they are among ``all-linear``) learn to use it. An image takes one token per patch
in front of the prompt.

A learner over it is saved and published like any other. It names one model, not two, so whoever opens it
passes the backbone: ``DyMoE.from_pretrained(folder, backbone=VisionLanguageAnswerer(...))``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from moe_adapt.backbones.instructions import Batch, CausalAnswerer
from moe_adapt.backbones.pretrained import DTYPES, Precision, load_pretrained
from moe_adapt.errors import UserError

__all__ = ["VisionLanguageAnswerer", "llava_from_parts"]


def llava_from_parts(
    vision: str, language: str, dtype: Precision = "float32"
) -> LlavaForConditionalGeneration:
    """Join a pretrained vision tower and a pretrained language model by a projector that is always the same.

    Args:
        vision: Name or folder of a vision transformer.
        language: Name or folder of a causal language model.
        dtype: Precision of the weights.
    """
    tower: Any = load_pretrained(AutoModel, vision, dtype).model
    writer: Any = load_pretrained(AutoModelForCausalLM, language, dtype).model
    text = AutoConfig.from_pretrained(language)
    config = LlavaConfig(
        vision_config=AutoConfig.from_pretrained(vision),
        text_config=text,
        image_token_index=text.vocab_size,
        vision_feature_layer=-1,
    )
    config.text_config.vocab_size = text.vocab_size + 1  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        writer.resize_token_embeddings(text.vocab_size, mean_resizing=False)
        joined = LlavaForConditionalGeneration(config)
    joined.to(dtype=DTYPES[dtype])  # type: ignore[call-arg]
    joined.model.vision_tower.load_state_dict(tower.state_dict())
    own = joined.state_dict()
    for name, value in writer.state_dict().items():
        target = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
        own[target].copy_(value)
    return joined


class VisionLanguageAnswerer(CausalAnswerer):
    """A LLaVA-like model that answers questions about an image; batches have ``image`` [B, 3, H, W].

    Args:
        backbone: Name or folder of a language model (or of a whole LLaVA if `vision` is None); its
            tokenizer is used.
        vision: Name or folder of the vision tower.
        max_length: Most tokens of image, prompt and answer together.
        template: How a prompt is put; names {prompt}.
        dtype: Precision of the frozen weights.
    """

    def __init__(
        self,
        backbone: str,
        vision: str | None = None,
        max_length: int = 256,
        template: str = "{prompt}\nAnswer:",
        dtype: Precision = "float32",
    ) -> None:
        self.vision = vision
        super().__init__(backbone, max_length, template, dtype)

    def _load(self, backbone: str, dtype: Precision) -> Any:
        if self.vision is None:
            return load_pretrained(LlavaForConditionalGeneration, backbone, dtype).model
        return llava_from_parts(self.vision, backbone, dtype)

    @property
    def _config(self) -> Any:
        return self.model.config

    def _prompts(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        if "image" not in batch:
            raise UserError("a vision-language model needs an image with every prompt; this stream has none.")
        vision = self._config.vision_config
        side = batch["image"].shape[-1]
        if side != vision.image_size:
            raise UserError(
                f"the vision tower takes images of {vision.image_size} pixels, these have {side}."
            )
        patches = (side // vision.patch_size) ** 2
        token = self._config.image_token_index
        if patches + 2 > self.max_length:
            raise UserError(
                f"an image takes {patches} tokens, for which max_length {self.max_length} has no room."
            )
        room = self.max_length - patches - 16
        image = [token] * patches
        return [[ids[0], *image, *ids[1:][-max(room, 1) :]] for ids in super()._prompts(batch, rows)]

    def _extra(self, batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
        images = batch["image"][torch.as_tensor(list(rows), device=batch["image"].device)]
        return {"pixel_values": images.to(self.device)}
