"""Tiny tokenizers and models, built from configurations without a network, in milliseconds.

Import them with `from tests.training.tiny import tiny_bert, tiny_llama, tiny_tokenizer`: each writes a folder
that `from_pretrained` opens, and returns its path.
The tokenizer is byte-level: it takes any text and decodes it back.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
VOCABULARY = len(SPECIAL) + 256
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(folder: Path, chat: bool = False) -> Path:
    """Save a byte-level tokenizer that puts ``<s>`` before a text; with `chat` it has a chat template."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *symbols])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder


def tiny_bert(folder: Path, num_labels: int = 2, seed: int = 0, **options: Any) -> Path:
    """Save a 2-layer BERT classifier (hidden 32) and its tokenizer; `options` go to ``BertConfig``."""
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
        num_labels=num_labels,
    )
    torch.manual_seed(seed)
    BertForSequenceClassification(BertConfig(**settings | options)).save_pretrained(folder)
    return tiny_tokenizer(folder)


def tiny_llama(folder: Path, seed: int = 0, chat: bool = False, **options: Any) -> Path:
    """Save a 2-layer Llama (hidden 32, grouped keys) and its tokenizer; `options` go to ``LlamaConfig``."""
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**settings | options)).save_pretrained(folder)
    return tiny_tokenizer(folder, chat=chat)
