"""Tiny transformers models with random weights, in the place of those that PEFT's tests take from the Hub."""

import tempfile
from functools import cache
from pathlib import Path

import torch
import transformers

#: By the class that a file of PEFT's tests loads models with: PEFT's task type and the models.
BASES: dict[str, tuple[str, list[str]]] = {
    "AutoModelForCausalLM": ("CAUSAL_LM", ["LlamaForCausalLM", "GPT2LMHeadModel"]),
    "AutoModelForSeq2SeqLM": ("SEQ_2_SEQ_LM", ["T5ForConditionalGeneration"]),
    "AutoModel": ("FEATURE_EXTRACTION", ["BertModel"]),
    "AutoModelForSequenceClassification": (
        "SEQ_CLS",
        ["BertForSequenceClassification", "LlamaForSequenceClassification"],
    ),
    "AutoModelForTokenClassification": ("TOKEN_CLS", ["BertForTokenClassification"]),
    "AutoModelForQuestionAnswering": ("QUESTION_ANS", ["BertForQuestionAnswering"]),
}
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
_CONFIGS = {
    "Llama": lambda: transformers.LlamaConfig(**_WIDTH, intermediate_size=48, pad_token_id=0),
    "GPT2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=256, n_positions=128),
    "T5": lambda: transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=256, decoder_start_token_id=0
    ),
    "Bert": lambda: transformers.BertConfig(**_WIDTH, intermediate_size=48, max_position_embeddings=128),
}


@cache
def folder_of(architecture: str) -> str:
    """Return the folder of a tiny model, written at the first call.

    Args:
        architecture: Class of the model in transformers.
    """
    family = next(name for name in _CONFIGS if architecture.startswith(name))
    folder = Path(tempfile.mkdtemp(prefix="moe_adapt_bases")) / f"tiny-random-{architecture}"
    torch.manual_seed(0)
    getattr(transformers, architecture)(_CONFIGS[family]()).save_pretrained(folder)
    return str(folder)
