"""MiniLM in two halves: blocks 1 to 3 are the same for every adapter and computed once per text.

Adapters sit on query, value and feed-forward layers of blocks 4 to 6, so that a row's hidden states after
block 3 never change. Training and scoring run the upper half alone, on rows sorted into batches of their
lengths.
An answer is the candidate whose embedding under the base is nearest to that of the text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
import torch.nn.functional as F
from tasks import Row
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from moe_adapt.backbones.pretrained import load_pretrained
from moe_adapt.backbones.text import mean_over_tokens

__all__ = [
    "LORA_TARGETS",
    "MIDDLE",
    "UPPER",
    "Cached",
    "Halves",
    "Settings",
    "UpperHalf",
    "answers",
    "lora_config",
    "padded",
    "train",
]

#: Blocks of the upper half; those of MiniLM's lower half.
UPPER, MIDDLE = 3, 3
#: Layers with adapters in MiniLM, in the ViT of `images.py`, or in the language model of `language.py`.
LORA_TARGETS = (
    r".*(encoder\.layer\.([345]\.(attention\.self\.(query|value)|intermediate\.dense|output\.dense)"
    r"|[678]\.(attention\.[qv]_proj|mlp\.fc[12]))|layers\.2\d\.(self_attn\.[qv]_proj|mlp\.(up|down)_proj))"
)
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Settings:
    """How adapters are trained.

    Attributes:
        lr: Learning rate of AdamW; falls linearly to zero.
        epochs: Passes over the rows.
        batch: Rows per step.
        length: Tokens read of a text.
    """

    lr: float = 2e-3
    epochs: int = 8
    batch: int = 16
    length: int = 48


@dataclass(frozen=True)
class Cached:
    """Rows with their hidden states after the lower half.

    Attributes:
        rows: The rows.
        hidden: One tensor [S, d] per row, without padding.
        choices: Embeddings of the candidates by candidates.
        keys: Number of each row's customer; empty if rows have none.
    """

    rows: list[Row]
    hidden: list[Tensor]
    choices: dict[tuple[str, ...], Tensor]
    keys: tuple[int, ...] = ()

    #: What has an entry per row, or none at all.
    BY_ROW: ClassVar = ("rows", "hidden", "keys")

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: "Cached") -> "Cached":
        parts = {name: getattr(self, name) + getattr(other, name) for name in self.BY_ROW}
        return replace(self, choices=self.choices | other.choices, **parts)

    def take(self, numbers: Sequence[int]) -> "Cached":
        """Return some of the rows."""
        parts = {name: getattr(self, name) for name in self.BY_ROW}
        return replace(
            self, **{name: type(own)(own[i] for i in numbers if own) for name, own in parts.items()}
        )

    @property
    def texts(self) -> list[str]:
        """The texts."""
        return [row.text for row in self.rows]

    def features(self) -> Tensor:
        """Return the mean hidden state of every row, [N, d]."""
        return torch.stack([hidden.mean(dim=0) for hidden in self.hidden])

    def vectors(self, model: nn.Module) -> Tensor:
        """Return the embedding of each row under a model's upper half, of length one, [B, d].

        Args:
            model: A model of the whole encoder, whose upper blocks are run, or of an `UpperHalf`, which is
                given the rows' keys as `domain_ids` if they have some.
        """
        inputs = padded(self.hidden)
        more = {"domain_ids": torch.tensor(self.keys)} if self.keys else {}
        whole = not any(isinstance(module, UpperHalf) for module in model.modules())
        output = (UpperHalf(_encoder_holder(model)) if whole else model)(**inputs, **more)
        return F.normalize(mean_over_tokens(output.last_hidden_state, inputs["attention_mask"]), dim=-1)

    @torch.no_grad()
    def by_block(self, base: nn.Module, size: int = 64) -> list[Tensor]:
        """Return the mean hidden states of rows in the middle, and after each block above, [N, d] each."""
        upper, seen = UpperHalf(base), []

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [block.register_forward_hook(keep) for block in upper.encoder.layer[-UPPER:]]
        parts = []
        for start in range(0, len(self), size):
            inputs = padded(self.hidden[start : start + size])
            seen.clear()
            upper(**inputs)
            means = [mean_over_tokens(hidden, inputs["attention_mask"]) for hidden in seen]
            parts.append(torch.stack(means))
        for handle in handles:
            handle.remove()
        return [self.features(), *torch.cat(parts, dim=1)]

    def scores(self, model: nn.Module) -> list[Tensor]:
        """Return the scores of the candidates of each row (see `vectors`)."""
        found = zip(self.vectors(model), self.rows, strict=True)
        return [vector @ self.choices[row.candidates].t() for vector, row in found]

    def losses(self, model: nn.Module) -> Tensor:
        """Return the cross-entropy of each row, with its candidates as classes, [B]."""
        return torch.stack(
            [
                F.cross_entropy(scores / TEMPERATURE, torch.tensor(row.answer))
                for scores, row in zip(self.scores(model), self.rows, strict=True)
            ]
        )


class Halves:
    """The base model, cut in the middle.

    Args:
        folder: Folder of all-MiniLM-L6-v2.
        length: Tokens read of a text.
    """

    #: Blocks below the cut.
    middle = MIDDLE

    def __init__(self, folder: str | Path, length: int) -> None:
        self.folder, self.length = str(folder), length
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.base = self.fresh()
        self.lower = self.fresh()
        self.lower.encoder.layer = self.lower.encoder.layer[:MIDDLE]

    def fresh(self) -> Any:
        """Return the base model, frozen."""
        model: Any = load_pretrained(
            AutoModel, self.folder, "float32", add_pooling_layer=False, attn_implementation="eager"
        ).model
        model.name_or_path = "sentence-transformers/all-MiniLM-L6-v2"
        return model.eval().requires_grad_(False)

    def whole(self) -> Any:
        """Return the whole base model, frozen."""
        return self.base

    @torch.no_grad()
    def cache(self, rows: Sequence[Row]) -> Cached:
        """Return rows with their hidden states in the middle."""
        hidden: list[Any] = [None] * len(rows)
        texts = [row.text for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), 32):
            numbers = order[start : start + 32]
            batch = self.tokens([texts[i] for i in numbers])
            states = self.lower(**batch).last_hidden_state
            for place, number in enumerate(numbers):
                hidden[number] = states[place, : int(batch["attention_mask"][place].sum())].clone()
        sets = {row.candidates for row in rows}
        return Cached(list(rows), hidden, {names: self.embed(names) for names in sets})

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the token ids and mask of texts."""
        return dict(
            self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
            )
        )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the base's own embeddings of texts, of length one, [N, d]."""
        batch = self.tokens(texts)
        hidden = self.base(**batch).last_hidden_state
        return F.normalize(mean_over_tokens(hidden, batch["attention_mask"]), dim=-1).clone()


class UpperHalf(nn.Module):
    """The last three blocks as a model of their own, for adapters whose routers look at a whole forward.

    Args:
        base: The base model, whose blocks it shares.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.encoder, self.config = base.encoder, base.config
        self.layernorm = getattr(base, "layernorm", nn.Identity())

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        """Return the last hidden states of hidden states in the middle [B, S, d] with their mask [B, S]."""
        smallest = torch.finfo(inputs_embeds.dtype).min
        added = torch.zeros(attention_mask.shape).masked_fill(~attention_mask.bool(), smallest)
        hidden = inputs_embeds
        for block in self.encoder.layer[-UPPER:]:
            hidden = block(hidden, attention_mask=added[:, None, None])
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        hidden = self.layernorm(hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))


def padded(states: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the middle states of rows in one tensor [B, S, d], and their mask [B, S]."""
    hidden = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    lengths = torch.tensor([len(own) for own in states])
    return {"inputs_embeds": hidden, "attention_mask": torch.arange(hidden.shape[1]) < lengths[:, None]}


def _encoder_holder(model: nn.Module) -> Any:
    """Return the module of a model that has the encoder."""
    kinds = ("BertEncoder", "Dinov2Encoder")
    return next(m for m in model.modules() if type(getattr(m, "encoder", None)).__name__ in kinds)


@torch.no_grad()
def answers(model: nn.Module, data: Cached, size: int = 64) -> Tensor:
    """Return whether each row is answered right, bool [N]."""
    model.eval()
    right = torch.zeros(len(data), dtype=torch.bool)
    order = sorted(range(len(data)), key=lambda i: len(data.hidden[i]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        part = data.take(numbers)
        for number, row, scores in zip(numbers, part.rows, part.scores(model), strict=True):
            right[number] = int(scores.argmax()) == row.answer
    return right


def lora_config(rank: int) -> peft.LoraConfig:
    """Return the adapter of every method: LoRA with scale 2."""
    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS)


def train(model: nn.Module, data: Cached, settings: Settings, seed: int) -> None:
    """Train what is trainable of a model on rows, with answers as classes.

    Args:
        model: The model.
        data: The rows.
        settings: How.
        seed: Fixes the order.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)
    steps = settings.epochs * -(-len(data) // settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = random.Random(seed)
    model.eval()  # the base has no dropout to speak of, the adapters have none
    for _ in range(settings.epochs):
        for numbers in batches(data, settings.batch, rng):
            part = data.take(numbers)
            loss = part.losses(model).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()


def batches(data: Cached, size: int, rng: random.Random) -> list[list[int]]:
    """Return the numbers of all rows in random batches of texts of similar lengths.

    Args:
        data: The rows.
        size: Rows of a batch.
        rng: Draws which rows meet, and the order of the batches.
    """
    order = rng.sample(range(len(data)), len(data))
    found = []
    for start in range(0, len(order), 10 * size):
        part = sorted(order[start : start + 10 * size], key=lambda i: len(data.hidden[i]))
        found += [part[first : first + size] for first in range(0, len(part), size)]
    rng.shuffle(found)
    return found
