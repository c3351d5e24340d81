"""Lightning modules: a pretrained backbone with routed LoRA experts, for one kind of task each."""

from moe_adapt.training.modules.base import AdaptedModule
from moe_adapt.training.modules.causal_lm import CausalLM
from moe_adapt.training.modules.image_classification import ImageClassifier
from moe_adapt.training.modules.sequence_classification import SequenceClassifier

__all__ = ["AdaptedModule", "CausalLM", "ImageClassifier", "SequenceClassifier"]
