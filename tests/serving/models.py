"""Tiny trained models as exported folders: a classifier and language models over one base."""

from pathlib import Path

import lightning as L
import peft

from moe_adapt.hub.answering import base_arguments
from moe_adapt.hub.card import About
from moe_adapt.hub.export import export_model
from moe_adapt.training.modules import CausalLM, SequenceClassifier
from tests.training.runs import routed
from tests.training.tiny import tiny_bert, tiny_llama
from tests.tuner.tiny import randomize

NAMES = ["cold", "warm", "mild"]


def classifier(folder: Path, seed: int = 0) -> Path:
    """Export a text classifier with random experts over a tiny BERT beside it."""
    bert = folder.parent / "bert"
    if not bert.is_dir():
        tiny_bert(bert)
    L.seed_everything(seed, verbose=False)
    module = SequenceClassifier(str(bert), len(NAMES), routed())
    return _export(
        module, folder, {"backbone": str(bert), "num_classes": len(NAMES)}, text_answering(bert), seed
    )


def text_answering(bert: Path) -> dict:
    return {
        "task": "text-classification",
        "class_names": NAMES,
        "text_columns": ["text"],
        "label_column": "label",
        "max_length": 32,
        "tokenizer": str(bert),
    }


def language_model(folder: Path, seed: int = 0) -> Path:
    """Export a language model with random experts over a tiny Llama with a chat format beside it."""
    llama = folder.parent / "llama"
    if not llama.is_dir():
        tiny_llama(llama, chat=True)
    L.seed_everything(seed, verbose=False)
    module = CausalLM(str(llama), routed())
    answering = {
        "task": "text-generation",
        "prompt": "{question}",
        "response": " {answer}",
        "chat": True,
        "system": None,
        "max_length": 64,
        "tokenizer": str(llama),
    }
    return _export(module, folder, {"backbone": str(llama)}, answering, seed)


def _export(module, folder: Path, arguments: dict, answering: dict, seed: int) -> Path:
    assert isinstance(module.model, peft.PeftModel)
    randomize(module.model, seed + 1)
    base = base_arguments(type(module), arguments)
    content = {**answering, "module": type(module).__name__, "base": base}
    export_model(module.model.eval(), folder, about=About(answering=content))
    return folder
