"""Tiny language models and classifiers, and LoRA adapters of every kind to compose on them."""

import json

import peft
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = {
    "bank": [
        "pay the bill",
        "my card is lost",
        "open a new account",
        "transfer money now",
        "the fee is high",
    ],
    "news": [
        "the match was won",
        "a new law passed",
        "stocks fell today",
        "the president spoke",
        "rain is near",
    ],
    "food": ["bake the bread", "boil two eggs", "chop the onion", "serve it with rice", "add some salt"],
}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for texts in WORDS.values() for text in texts for word in text.split()})
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[EOS]", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", padding_side="left"
    )


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def bert(head=True):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return (BertForSequenceClassification(config) if head else BertModel(config)).eval()


def save_lora(base, folder, seed, **options):
    """Save a LoRA with random weights."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings | options))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(str(folder))
    return str(folder)


def llama_adapters(folder):
    """Three LoRAs of different ranks, scales and layers."""
    options = {
        "bank": {"r": 4, "lora_alpha": 8},
        "food": {"r": 2, "lora_alpha": 7, "target_modules": ["up_proj", "q_proj"]},
        "news": {"r": 8, "lora_alpha": 4, "target_modules": r".*layers\.[23]\.self_attn\.(q|o)_proj"},
    }
    return {
        uid: save_lora(llama(), folder / uid, seed, **own) for seed, (uid, own) in enumerate(options.items())
    }


def batch(texts, tokens=None, side="left"):
    tokens = tokens or tokenizer()
    tokens.padding_side = side
    return dict(tokens(texts, padding=True, return_tensors="pt", return_token_type_ids=False))


def files(folder):
    return {
        name: load_file(folder / name) for name in ("adapter_model.safetensors", "router.safetensors")
    } | {"config": json.loads((folder / "adapter_config.json").read_text())}


def same(one, other):
    return one["config"] == other["config"] and all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key], other[name][key]) for key in one[name])
        for name in ("adapter_model.safetensors", "router.safetensors")
    )
