"""Train one stock LoRA on one desk's rows, and save it as PEFT does.

An answer is the word whose embedding under the base is nearest to the text's under the adapter. Rank 8 on
query, value and feed-forward layers of the upper half: the blocks below decide which adapter a text gets.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.backbones.text import mean_over_tokens
from moe_adapt.data.packages import MINILM_ID
from moe_adapt.demo.desks import CODES, Rows
from moe_adapt.hub.composition.base import open_base, open_tokenizer

__all__ = ["Training", "train_adapter", "word_vectors"]

_TEMPERATURE = 0.05


@dataclass(frozen=True)
class Training:
    """How every adapter is trained.

    Attributes:
        epochs: Passes over the rows.
        batch_size: Rows per step.
        max_length: Tokens read of a text.
        rank: Rank of the LoRA; its scale is 2.
        lr: Learning rate of AdamW; falls linearly to zero.
    """

    epochs: int = 6
    batch_size: int = 10
    max_length: int = 32
    rank: int = 8
    lr: float = 2e-3


def embed(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Tensor:
    """Return the embeddings of texts, of length one, [N, d]."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return F.normalize(mean_over_tokens(model(**inputs).last_hidden_state, inputs["attention_mask"]), dim=-1)


@torch.no_grad()
def word_vectors(backbone: str, max_length: int) -> dict[str, Tensor]:
    """Return the base's embedding of every word that desks use, [d] each."""
    vectors = embed(open_base(backbone, None), open_tokenizer(backbone), CODES, max_length)
    return dict(zip(CODES, vectors, strict=True))


def train_adapter(backbone: str, rows: Rows, folder: Path, training: Training, seed: int) -> None:
    """Train a LoRA on rows and save it.

    Args:
        backbone: Folder of the base model.
        rows: The rows, with text and label (one of `CODES`).
        folder: Where to save it.
        training: How.
        seed: Decides initial values and order.
    """
    base, tokenizer = open_base(backbone, None), open_tokenizer(backbone)
    words = torch.stack(list(word_vectors(backbone, training.max_length).values()))
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=training.rank,
        lora_alpha=2 * training.rank,
        target_modules=r"encoder\.layer\.[345]\.(attention\.self\.(query|value)|intermediate\.dense|output\.dense)",
    )
    model: Any = peft.get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = MINILM_ID
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=0.0)
    steps = training.epochs * -(-len(rows) // training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = random.Random(seed)
    model.eval()  # few rows and steps: without dropout
    for _ in range(training.epochs):
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), training.batch_size):
            part = order[start : start + training.batch_size]
            vectors = embed(model, tokenizer, [row["text"] for row in part], training.max_length)
            wanted = torch.tensor([CODES.index(row["label"]) for row in part])
            optimizer.zero_grad()
            F.cross_entropy(vectors @ words.t() / _TEMPERATURE, wanted).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    model.save_pretrained(folder)
