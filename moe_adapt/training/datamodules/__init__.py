"""Data modules: tables of texts, questions and images as seeded, resumable batches."""

from moe_adapt.training.datamodules.base import SeededDataModule
from moe_adapt.training.datamodules.causal_lm import CausalLMData
from moe_adapt.training.datamodules.images import ImageArrays, ImageClassificationData
from moe_adapt.training.datamodules.text_classification import TextClassificationData

__all__ = [
    "CausalLMData",
    "ImageArrays",
    "ImageClassificationData",
    "SeededDataModule",
    "TextClassificationData",
]
