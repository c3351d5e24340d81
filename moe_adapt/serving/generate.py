"""Generate text with an opened language model: every request of a batch has its own options and adapter.

One call of ``generate`` runs a batch; what differs between its rows (temperature, top-p, seed, length, stop
words, being called off) is decided row by row: a processor of the logits leaves one token of a sampled row,
and a stopping rule ends single rows. Tokens are handed out as they come.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from moe_adapt.data.chat_template import chat_template
from moe_adapt.data.formats import alpaca_row, is_alpaca
from moe_adapt.data.prompts import encode_prompts, render, template_fields
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.serving.known import domain_column, known_ids

__all__ = ["Generating", "Request", "Sampling"]

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How one answer is written.

    Attributes:
        max_new_tokens: The most tokens.
        temperature: 0 takes the likeliest token every time.
        top_p: Smallest set of tokens with so much probability, from which is drawn.
        seed: Seed of the draws; None draws anew every time.
        stop: Texts that end an answer; they are not part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass
class Request:
    """One answer being written.

    Attributes:
        tokens: The prompt's tokens.
        adapter: Name of the adapter.
        sampling: How it is written.
        emit: Gets every new piece of text.
        called_off: Asked between two tokens: whether nobody wants the answer any more.
        text: The answer so far.
        written: Its tokens.
        finish: Why it ended: ``stop`` or ``length``; None while it is written.
        domain: Whose the prompt is, a value of the domain column; None for unknown.
    """

    tokens: list[int]
    adapter: str
    sampling: Sampling = field(default_factory=Sampling)
    emit: Callable[[str], object] = lambda piece: None
    called_off: Callable[[], bool] = lambda: False
    text: str = ""
    written: list[int] = field(default_factory=list)
    finish: str | None = None
    domain: Any = None


class _Draw(LogitsProcessor):
    """Leave one token of every row that samples."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.generators = [torch.Generator() for _ in requests]
        for request, generator in zip(requests, self.generators, strict=True):
            seed = request.sampling.seed
            generator.seed() if seed is None else generator.manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, (request, generator) in enumerate(zip(self.requests, self.generators, strict=True)):
            if request.sampling.temperature > 0:
                token = _draw(scores[row].float().cpu(), request.sampling, generator)
                scores[row] = float("-inf")
                scores[row, token] = 0.0
        return scores


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    values, order = probabilities.sort(descending=True)
    kept = values.cumsum(dim=-1) - values < sampling.top_p
    kept[0] = True
    return int(order[torch.multinomial(values * kept, 1, generator=generator)])


class _Ended(StoppingCriteria):
    """End the rows that are finished."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = [request.finish is not None or request.called_off() for request in self.requests]
        return torch.tensor(ended, device=input_ids.device)


class _HandOut(BaseStreamer):
    """Give every row its token, as text, when it comes."""

    def __init__(self, requests: Sequence[Request], tokenizer: Any, ends: set[int]) -> None:
        self.requests, self.tokenizer, self.ends = requests, tokenizer, ends
        self.prompted = False

    def put(self, value: Tensor) -> None:
        """Take the tokens of one step; the first call brings the prompts."""
        if not self.prompted:
            self.prompted = True
            return
        for request, token in zip(self.requests, value.tolist(), strict=True):
            if request.finish is None:
                self._take(request, token)

    def _take(self, request: Request, token: int) -> None:
        if token in self.ends:
            request.finish = "stop"
            return
        request.written.append(token)
        text = self.tokenizer.decode(request.written, skip_special_tokens=True)
        cut = [text.index(word) for word in request.sampling.stop if word in text]
        if cut:
            text, request.finish = text[: min(cut)], "stop"
        elif len(request.written) >= request.sampling.max_new_tokens:
            request.finish = "length"
        held = _may_be_stop(text, request.sampling.stop) if request.finish is None else 0
        ready = text[: len(text) - held]
        if len(ready) > len(request.text) and (request.finish or not ready.endswith("\ufffd")):
            piece, request.text = ready[len(request.text) :], ready
            request.emit(piece)

    def end(self) -> None:
        """Do nothing: requests end one by one."""


def _may_be_stop(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end may be the beginning of a stop word."""
    return max(
        (size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0
    )


class Generating:
    """A language model in use.

    Args:
        model: The model with its adapter, in evaluation mode.
        answering: How rows are put to it (`moe_adapt.hub.answering`).
        tokenizer: Folder or name of its tokenizer.
        name: Name of the adapter.

    Attributes:
        adapters: ``answering`` of every adapter that can be asked for, by name.
    """

    def __init__(self, model: Any, answering: Mapping[str, Any], tokenizer: str | None, name: str) -> None:
        self.model = model
        self.adapters: dict[str, dict[str, Any]] = {name: dict(answering)}
        self.first = name
        self.tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
        chat_template(self.tokenizer, answering.get("chat_template"))
        config = getattr(model, "config", None)
        self.context = int(getattr(config, "max_position_embeddings", 0) or 2**20)

    @property
    def domain_column(self) -> str | None:
        """Column that says whose a row is, of the first adapter."""
        return domain_column(self.adapters[self.first])

    def add(self, name: str, folder: Path, answering: Mapping[str, Any]) -> None:
        """Load another adapter over the same base; see `moe_adapt.serving.classify.Classifying.add`."""
        self.model.load_adapter(str(folder), adapter_name=name)
        self.model.eval()
        self.adapters[name] = dict(answering)

    def row_tokens(self, row: Mapping[str, Any], number: int, adapter: str | None = None) -> list[int]:
        """Return the prompt of a row in the adapter's template, as in training.

        Args:
            row: The row's columns; an OpenAI-style ``messages`` column goes before the template.
            number: The row's number, for messages.
            adapter: Name of the adapter.

        Raises:
            UserError: If a column is missing.
        """
        own = self.adapters[adapter or self.first]
        if isinstance(row.get("messages"), list):
            return self.chat_tokens(row["messages"], adapter)
        template = own.get("prompt") or "{text}"
        if is_alpaca([*row, "output"]):
            row = alpaca_row(row, template_fields(template))
        for column in template_fields(template):
            if column not in row:
                raise UserError(
                    f"row {number} has no column {column!r}, which the prompt {template!r} needs."
                    f"{did_you_mean(column, row)}"
                )
        text = render(template, row, number)
        if not own.get("chat"):
            return encode_prompts(self.tokenizer, [text], chat=False)[0]
        system = [{"role": "system", "content": own["system"]}] if own.get("system") else []
        return self.chat_tokens([*system, {"role": "user", "content": text}], adapter)

    def chat_tokens(self, messages: Sequence[Message], adapter: str | None = None) -> list[int]:
        """Return the prompt of a conversation: in the chat format, or in the training template without one.

        Args:
            messages: ``role`` and ``content`` of every turn.
            adapter: Name of the adapter.

        Raises:
            UserError: If the model has neither a chat format nor a template with one field.
        """
        own = self.adapters[adapter or self.first]
        if self.tokenizer.chat_template is not None and (own.get("chat") or not own.get("prompt")):
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
            return encode_prompts(self.tokenizer, [str(text)], chat=True)[0]
        fields = template_fields(own.get("prompt") or "{text}")
        if len(fields) != 1:
            raise UserError(
                f"the model was trained on the prompt {own.get('prompt')!r}, which needs "
                f"{', '.join(fields)}: it "
                "holds no conversation; put rows to it with `moe-adapt generate`."
            )
        return self.row_tokens({fields[0]: str(messages[-1]["content"])}, 0, adapter)

    def generate(self, requests: Sequence[Request]) -> None:
        """Write the answers of a batch into its requests.

        Args:
            requests: What to answer; each gets ``text`` and ``finish``.

        Raises:
            UserError: If a prompt and its answer do not fit the model's context, or an adapter is unknown.
        """
        for request in requests:
            self.check(request)
        ends = self._ends()
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(ends, default=0)
        longest = max(len(request.tokens) for request in requests)
        device = next(self.model.parameters()).device
        rows = [[pad] * (longest - len(r.tokens)) + list(r.tokens) for r in requests]
        mask = [[0] * (longest - len(r.tokens)) + [1] * len(r.tokens) for r in requests]
        extra: dict[str, Any] = {}
        if len(self.adapters) > 1:
            extra["adapter_names"] = [request.adapter for request in requests]
        extra |= known_ids(self.model, self.adapters, [request.domain for request in requests], device)
        with torch.inference_mode():
            self.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=max(request.sampling.max_new_tokens for request in requests),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([_Draw(requests)]),
                stopping_criteria=StoppingCriteriaList([_Ended(requests)]),
                streamer=_HandOut(requests, self.tokenizer, ends),
                **extra,
            )
        for request in requests:
            request.finish = request.finish or "length"

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            UserError: If it is too long, empty, or names an unknown adapter.
        """
        if request.adapter not in self.adapters:
            near = did_you_mean(request.adapter, self.adapters)
            raise UserError(f"there is no adapter {request.adapter!r}.{near}")
        if not request.tokens:
            raise UserError("the prompt is empty.")
        need = len(request.tokens) + request.sampling.max_new_tokens
        if need > self.context:
            raise UserError(
                f"the prompt has {len(request.tokens)} tokens and the answer may have "
                f"{request.sampling.max_new_tokens}, but the model takes {self.context} together."
            )

    def _ends(self) -> set[int]:
        config = getattr(self.model, "generation_config", None)
        own = getattr(config, "eos_token_id", None)
        ids = own if isinstance(own, list) else [own]
        return {int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None}
