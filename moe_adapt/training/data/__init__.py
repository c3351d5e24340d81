"""Data modules: tables of texts, questions and images as seeded, resumable batches."""

from moe_adapt.training.data.base import SeededDataModule
from moe_adapt.training.data.causal_lm import CausalLMData
from moe_adapt.training.data.images import ImageArrays, ImageClassificationData
from moe_adapt.training.data.text_classification import TextClassificationData

__all__ = [
    "CausalLMData",
    "ImageArrays",
    "ImageClassificationData",
    "SeededDataModule",
    "TextClassificationData",
]
