r"""Composed adapters whose router decides for every token in every layer: Arrow, PHATGOOSE and Glider.

`arrow` needs nothing but the adapters: a token goes to the experts whose change of weight is largest in its
direction. `phatgoose` has a gate vector per adapter and layer, trained for it alone while everything else is
frozen (`moe_adapt.hub.gates.train_gate`), or published with it. Examples are pieces of text, or prompts
with responses, of which the response is learned. `glider` has such gates, and adds to a token's logit for an
expert what speaks for it in the whole prompt: `scale` times the cosine of the prompt with the mean of the
expert's examples, both as mean hidden states after a middle block. The paper compares descriptions of tasks
that a language model wrote, under a sentence encoder; here the base model and the examples do.

No adapter's gate depends on the others, so adding and
removing is exact as for statistics. But gates of the experts kept for a token are normalised, and a new
expert takes tokens from all others' rows: unlike one decision per sequence, outputs of other rows do change.

Reference: Muqeeth et al., PHATGOOSE, arXiv 2402.05859; Li et al., Glider, arXiv 2410.07172.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.hub.gates import train_gate
from moe_adapt.routing.sample import PrototypeSampleRouter, SampleRouter
from moe_adapt.tuner.flat_state import ROUTER_PREFIX

__all__ = ["TOKEN_ROUTERS", "Example", "TokenRouter", "asked", "labels_of", "train_text_gate"]

TOKEN_ROUTERS = ("arrow", "phatgoose", "glider")
_WEIGHT = f"{ROUTER_PREFIX}scorer__weight"
_COLUMNS = f"{ROUTER_PREFIX}modifiers__0__columns"
_ROOT = "base_model.model."
_BATCH = 8

#: A text, or a prompt with the response that is learned, or that is the label of its class.
Example = str | tuple[str, str]


@dataclass
class TokenRouter:
    """A router over tokens, and what it knows of every expert.

    Attributes:
        name: One of `TOKEN_ROUTERS`.
        temperature: Divides Arrow's scores.
        steps: Steps of training for a gate.
        lr: Learning rate of a gate.
        scale: Factor on the cosines of prompts, for ``glider``. Higher: the prompt counts for more.
        gates: Gate vectors [d] by expert and layer, unless it is ``arrow``.
    """

    name: str
    temperature: float = 1.0
    steps: int = 100
    lr: float = 5e-3
    scale: float = 3.0
    gates: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Any) -> "TokenRouter | None":
        """Return the router of a short name or mapping; None if it is a router over samples.

        Raises:
            UserError: If an option is unknown or out of range.
        """
        options = {"name": spec} if isinstance(spec, str) else dict(spec or {})
        if options.get("name") not in TOKEN_ROUTERS:
            return None
        known = ("name", "temperature", "steps", "lr", "scale")
        strange = next((name for name in options if name not in known), None)
        if strange is not None:
            raise UserError(f"{options['name']} has no option {strange!r}.{did_you_mean(strange, known)}")
        router = cls(**options)
        if router.temperature <= 0 or router.steps < 1 or router.lr <= 0 or router.scale < 0:
            raise UserError("temperature and lr are positive, scale is not negative, and steps at least 1.")
        return router

    @property
    def has_gates(self) -> bool:
        """Whether every expert has gates of its own."""
        return self.name != "arrow"

    def prompts(self) -> SampleRouter | None:
        """Return what compares prompts with the experts' examples, if that counts; it knows none yet."""
        return PrototypeSampleRouter(temperature=1.0) if self.name == "glider" else None

    def options(self) -> dict[str, Any]:
        """Return name and options as JSON types."""
        if self.name == "arrow":
            return {"name": self.name, "temperature": self.temperature}
        gates = {"name": self.name, "steps": self.steps, "lr": self.lr}
        return gates | ({"scale": self.scale} if self.name == "glider" else {})

    def parts(self, k: int) -> dict[str, Any]:
        """Return method, scorer and selector of the adapter's configuration.

        Args:
            k: Experts per token; 0 mixes all of them.
        """
        selector = "dense" if k == 0 else {"name": "top_k", "k": k}
        if self.name == "arrow":
            scorer: dict[str, Any] = {"name": "arrow", "temperature": self.temperature}
            return {"method": "arrow", "scorer": scorer, "selector": selector}
        parts: dict[str, Any] = {"method": "top_k", "scorer": {"name": "phatgoose"}, "selector": selector}
        if self.name == "glider":
            parts["modifiers"] = [{"name": "sample_score", "scale": self.scale}]
        return parts

    def tensors(self, site: str, names: Sequence[str], experts: Sequence[str]) -> dict[str, Tensor]:
        """Return the router's tensors at a layer by their names in the adapter's file.

        Args:
            site: The layer.
            names: Its experts.
            experts: All experts, in the order of the scores of prompts.

        Raises:
            UserError: If an expert has no gate there.
        """
        if not self.has_gates:
            return {}
        lacking = [name for name in names if site not in self.gates.get(name, {})]
        if lacking:
            raise UserError(f"the adapter {lacking[0]!r} has no gate for the layer {site}; train it again.")
        rows = torch.stack([self.gates[name][site].float() for name in names])
        found = {f"{_ROOT}{site}.{_WEIGHT}": rows}
        if self.name == "glider":
            found[f"{_ROOT}{site}.{_COLUMNS}"] = torch.tensor([experts.index(name) for name in names])
        return found

    def take(self, tensors: Mapping[str, Tensor], sites: Mapping[str, Mapping[str, Any]]) -> None:
        """Read the gates of all experts from an adapter's tensors."""
        if not self.has_gates:
            return
        for site, spec in sites.items():
            rows = tensors[f"{_ROOT}{site}.{_WEIGHT}"]
            for name, row in zip(spec["uids"], rows, strict=True):
                self.gates.setdefault(name, {})[site] = row


def asked(example: Example) -> str:
    """Return the text of an example, or its prompt."""
    return example if isinstance(example, str) else example[0]


def labels_of(examples: Sequence[Example]) -> list[str | None]:
    """Return the label or response of each example; None where there is none."""
    return [None if isinstance(example, str) else example[1] for example in examples]


def train_text_gate(
    router: TokenRouter,
    base: nn.Module,
    tokenizer: Any,
    source: str,
    examples: Sequence[Example],
    max_length: int,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train the gate of one adapter on texts; the base comes back as it was.

    Args:
        router: Has the number of steps and the learning rate.
        base: A causal language model.
        tokenizer: Its tokeniser.
        source: The adapter.
        examples: What the adapter is for.
        max_length: Tokens read of an example.
        seed: Fixes the order of the examples.

    Returns:
        Gate vectors [d] by layer.

    Raises:
        UserError: If the base is no language model, or there is no example.
    """
    if getattr(base, "get_output_embeddings", lambda: None)() is None:
        raise UserError(
            "phatgoose trains gates by the loss of a language model, and this base has none: give gates that "
            "were trained before, or take --router lda."
        )
    if not examples:
        raise UserError("a gate is trained on examples of what the adapter is good at; there are none.")
    batches = _batches(tokenizer, examples, max_length, router.steps, seed)
    return train_gate(base, source, batches, lambda model, batch: model(**batch).loss, router.lr)


def _batches(
    tokenizer: Any, examples: Sequence[Example], max_length: int, steps: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of tokens with labels, as many as there are steps."""
    order: list[int] = []
    draw = random.Random(seed)
    for _ in range(steps):
        while len(order) < min(_BATCH, len(examples)):
            order += draw.sample(range(len(examples)), len(examples))
        taken, order = order[:_BATCH], order[_BATCH:]
        rows = [_row(tokenizer, examples[number], max_length) for number in taken]
        width = max(len(ids) for ids, _ in rows)
        pad = tokenizer.pad_token_id
        yield {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        }


def _row(tokenizer: Any, example: Example, max_length: int) -> tuple[list[int], list[int]]:
    """Return tokens and labels of an example."""
    if isinstance(example, str):
        ids = tokenizer(example, truncation=True, max_length=max_length)["input_ids"]
        return ids, list(ids)
    prompt, response = example
    asked = tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"]
    answer = tokenizer(f" {response}", add_special_tokens=False)["input_ids"][:max_length]
    return asked + answer, [-100] * len(asked) + answer
