"""Pretrained models: loading them, and turning them into encoders of texts and images."""

from moe_adapt.backbones.holder import Encoder, Pretrained
from moe_adapt.backbones.image import ImageEncoder, Library
from moe_adapt.backbones.instructions import CausalAnswerer, ChoiceEncoder, InstructionModel
from moe_adapt.backbones.pretrained import Backbone, Precision
from moe_adapt.backbones.text import Pooling, TextEncoder

__all__ = [
    "Backbone",
    "CausalAnswerer",
    "ChoiceEncoder",
    "Encoder",
    "ImageEncoder",
    "InstructionModel",
    "Library",
    "Pooling",
    "Precision",
    "Pretrained",
    "TextEncoder",
]
