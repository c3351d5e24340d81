"""A small language model with routed experts, trained on two kinds of text."""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.training.modules import CausalLM
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["DOMAINS", "next_token_loss", "routed_language", "windows"]

#: Name and files of the two kinds of text: to train on, and to test on.
DOMAINS = {
    "plays": ("tinyshakespeare.txt", "tinyshakespeare.txt"),
    "articles": ("wikitext2_valid.txt", "wikitext2_test.txt"),
}


def windows(domain: str, args: argparse.Namespace, test: bool) -> Tensor:
    """Return rows of tokens [N, S] of a kind of text; plays are split into a first and a last part."""
    text = (args.data / "lm_text" / DOMAINS[domain][test]).read_text(encoding="utf-8")
    own = text[-len(text) // 5 :] if test else text[: len(text) * 4 // 5]
    tokenizer = AutoTokenizer.from_pretrained(args.data / "stories260k_hf")
    ids = tokenizer(own[: args.characters], add_special_tokens=False)["input_ids"]
    count = len(ids) // args.length
    return torch.tensor(ids[: count * args.length]).view(count, args.length)


def next_token_loss(model: Any, ids: Tensor, first: int = 0) -> Tensor:
    """Return the mean next-token loss of the tokens after place `first`, a scalar."""
    logits = model(input_ids=ids).logits[:, first:-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, first + 1 :].flatten())


def routed_language(seed: int, args: argparse.Namespace) -> CausalLM:
    """Return the model with top-k experts on its feed-forward layers, trained on both kinds of text."""
    torch.manual_seed(seed)
    config = RoutedLoraConfig(
        method="top_k",
        num_experts=8,
        r=8,
        alpha=16.0,
        dropout=0.0,
        target_modules=["gate_proj", "up_proj", "down_proj"],
    )
    module = CausalLM(str(args.data / "stories260k_hf"), config)
    model: Any = module.model
    path = args.runs / f"trained-language-{seed}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True), strict=False)
        return module.eval()
    rows = {domain: windows(domain, args, test=False) for domain in DOMAINS}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(args.steps):
        parts = [own[torch.randint(len(own), (4,), generator=draw)] for own in rows.values()]
        loss = next_token_loss(model, torch.cat(parts)) + model.base_model.aux_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(adapter_state(model), path)
    return module.eval()
