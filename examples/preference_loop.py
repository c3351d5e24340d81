r"""A loop as in TRL: direct preference optimisation (arXiv 2305.18290) of a routed adapter.

The reference is the same model with the adapter switched off, so there is no second copy of the weights. Two
things matter with a router inside:

* `aux_loss()` belongs to the last forward in training mode, so the reference runs first;
* chosen and rejected answers go through one forward, so that there is one auxiliary loss per step.

    python examples/preference_loop.py --backbone HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse
from typing import Any

import peft
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_adapt.tuner import RoutedLoraConfig

PAIRS = [
    ("How are you?", " Very well, thank you.", " Go away."),
    ("Is it late?", " It is ten in the evening.", " Why do you ask?"),
]


def log_likelihood(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """Return the log-likelihood of each row's answer tokens, [B]."""
    values = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (values * answer[:, 1:]).sum(dim=1)


def tokenize(tokenizer: Any, pairs: list[tuple[str, str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids [2 P, S], mask [2 P, S] and where the answers are [2 P, S]; chosen rows first."""
    rows = [(prompt, chosen) for prompt, chosen, _ in pairs]
    rows += [(prompt, rejected) for prompt, _, rejected in pairs]
    prompts = [len(tokenizer(prompt)["input_ids"]) for prompt, _ in rows]
    tokens = [torch.tensor(tokenizer(prompt + answer)["input_ids"]) for prompt, answer in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    places = torch.arange(ids.shape[1])
    mask = places < torch.tensor([len(row) for row in tokens])[:, None]
    return ids, mask.long(), mask & (places >= torch.tensor(prompts)[:, None])


def train(backbone: str, steps: int = 10, beta: float = 0.1, lr: float = 1e-3) -> list[dict[str, float]]:
    """Train on the pairs and return loss and auxiliary loss of every step."""
    config = RoutedLoraConfig(method="top_k", num_experts=4, r=4, target_modules="ffn", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(backbone), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    ids, mask, answer = tokenize(AutoTokenizer.from_pretrained(backbone), PAIRS)
    history = []
    for _ in range(steps):
        with torch.no_grad(), model.disable_adapter():
            reference = log_likelihood(model(input_ids=ids, attention_mask=mask).logits, ids, answer)
        policy = log_likelihood(model(input_ids=ids, attention_mask=mask).logits, ids, answer)
        chosen, rejected = (policy - reference).chunk(2)
        loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
        auxiliary = model.base_model.aux_loss()
        optimizer.zero_grad()
        (loss + auxiliary).backward()
        optimizer.step()
        history.append({"loss": loss.item(), "aux": auxiliary.item()})
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True, help="name or folder of a causal language model")
    for step, row in enumerate(train(parser.parse_args().backbone)):
        print(f"step {step}: loss {row['loss']:.4f}, auxiliary loss {row['aux']:.4f}")
