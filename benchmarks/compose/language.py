"""Five tasks that a language model answers in writing: topics, things, sentiment, grammar, duplicates.

SmolLM2-135M-Instruct reads a text and ``Answer:`` and writes the name of the label (`written_names`) or its
code word (`written_codes`; see `tasks.py`). No instruction says which task it is. Adapters sit in blocks 21
to 30 of 30, on query, value and feed-forward layers: states after block 20 are computed once per text.

Adapters are trained by the usual loss: the mean cross-entropy of the answer's tokens and of the end of text,
over the whole vocabulary. Answers are judged in two ways: the candidate whose first token is the likeliest
(no two candidates of a task share it), and what greedy decoding writes, which has to be the right answer
exactly (`written.py`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from encoder import Cached, Halves, padded
from tasks import Form, Row, load
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["LANGUAGE", "LOWER", "TASKS", "LanguageHalves", "load_prompts", "prompted"]

#: How answers are called: the form of `tasks.py` by the form of the cell.
LANGUAGE: dict[str, Form] = {"written_names": "names", "written_codes": "codes"}
TASKS = ("agnews", "dbpedia", "sst2", "cola", "qqp")
#: Blocks below the adapters; tokens read of a text.
LOWER, READ = 20, 48
PROMPT = "{text}\nAnswer:"


class Upper(nn.Module):
    """The last blocks of the language model, under the names that they have in the whole.

    Args:
        whole: The whole model; the blocks are copied.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.config = copy.deepcopy(whole.config)
        self.config.use_cache = False
        blocks = {str(i): copy.deepcopy(block) for i, block in enumerate(whole.model.layers) if i >= LOWER}
        self.model = nn.ModuleDict({"layers": nn.ModuleDict(blocks), "norm": whole.model.norm})
        self.lm_head, self.rotary = whole.lm_head, whole.model.rotary_emb

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        """Return the last hidden states of hidden states in the middle [B, S, d] with their mask [B, S]."""
        length = inputs_embeds.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & attention_mask.bool()[:, None, None]
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(inputs_embeds.dtype).min)
        positions = torch.arange(length)[None]
        turned, hidden = self.rotary(inputs_embeds, position_ids=positions), inputs_embeds
        for block in self.model["layers"].values():
            hidden = block(hidden, attention_mask=added, position_ids=positions, position_embeddings=turned)
        hidden = self.model["norm"](hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))


@dataclass(frozen=True)
class Written(Cached):
    """Rows with the tokens of their answers; `choices` has the output weights of candidates' first tokens.

    Attributes:
        answers: Tokens of each row's answer and the end of text. States reach to the last but one of them.
    """

    answers: tuple[Tensor, ...] = ()

    BY_ROW: ClassVar = ("rows", "hidden", "keys", "answers")

    def prompts(self) -> list[Tensor]:
        """Return the states of each row's prompt, without its answer."""
        pairs = zip(self.hidden, self.answers, strict=True)
        return [hidden[: len(hidden) - len(answer) + 1] for hidden, answer in pairs]

    def features(self) -> Tensor:
        """Return the mean hidden state of every prompt, [N, d]."""
        return torch.stack([states.mean(dim=0) for states in self.prompts()])

    def vectors(self, model: nn.Module) -> Tensor:
        """Return the last state of each prompt under an `Upper`, [B, d]."""
        states = self.prompts()
        found = model(**padded(states)).last_hidden_state
        return found[torch.arange(len(states)), torch.tensor([len(own) - 1 for own in states])]

    def losses(self, model: nn.Module) -> Tensor:
        """Return the mean cross-entropy of the tokens of each row's answer, [B]."""
        output = model(**padded(self.hidden)).last_hidden_state
        head = next(module.lm_head for module in model.modules() if isinstance(module, Upper))
        found = []
        for row, states, answer in zip(output, self.hidden, self.answers, strict=True):
            own = row[len(states) - len(answer) : len(states)]
            found.append(F.cross_entropy(head(own), answer))
        return torch.stack(found)


class LanguageHalves(Halves):
    """The language model, cut before the blocks with adapters.

    Args:
        folder: Folder of SmolLM2-135M-Instruct.
    """

    middle = LOWER

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.length = str(folder), READ + 8
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.loaded = loaded.eval().requires_grad_(False)
        self.lower = copy.deepcopy(self.loaded.model)
        self.lower.layers, self.lower.norm = self.lower.layers[:LOWER], nn.Identity()
        self.base = self.fresh()

    def fresh(self) -> Any:
        """Return the last blocks of the base, frozen."""
        return Upper(self.loaded).eval()

    def whole(self) -> Any:
        """Return the whole model; adapters that are put on it have to be unloaded."""
        return self.loaded

    @torch.no_grad()
    def cache(self, rows: Sequence[Row]) -> Written:
        """Return rows with their hidden states in the middle, up to the last token but one."""
        prompts = [self.tokenizer(row.text)["input_ids"] for row in rows]
        answers = [self.tokens_of(row.candidates[row.answer]) for row in rows]
        hidden: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), 32):
            numbers = order[start : start + 32]
            read = [torch.tensor([*prompts[i], *answers[i][:-1]]) for i in numbers]
            ids = nn.utils.rnn.pad_sequence(read, batch_first=True)
            states = self.lower(input_ids=ids, use_cache=False).last_hidden_state
            for place, number in enumerate(numbers):
                hidden[number] = states[place, : len(read[place])].clone()
        sets = {row.candidates: self.embed(row.candidates) for row in rows}
        return Written(list(rows), hidden, sets, answers=tuple(torch.tensor(own) for own in answers))

    def tokens_of(self, answer: str) -> list[int]:
        """Return the tokens of an answer and the end of text."""
        own = self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        return [*own, self.tokenizer.eos_token_id]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the output weights of the first tokens of candidates, [C, d].

        Raises:
            ValueError: If two candidates have the same first token.
        """
        first = [self.tokens_of(text)[0] for text in texts]
        if len(set(first)) < len(first):
            raise ValueError(f"two of the candidates {', '.join(texts)} begin with the same token")
        return self.loaded.lm_head.weight[first].clone()


def load_prompts(halves: LanguageHalves) -> Any:
    """Return a function like `tasks.load` whose rows have prompts as texts, of `READ` tokens at most."""

    def read(data: Path, task: str, form: str, **sizes: int) -> dict[str, list[Row]]:
        found = load(data, task, LANGUAGE[form], **sizes)
        return {name: [prompted(halves.tokenizer, row) for row in rows] for name, rows in found.items()}

    return read


def prompted(tokenizer: Any, row: Row) -> Row:
    """Return a row whose text, cut to `READ` tokens, is followed by the call for an answer."""
    ids = tokenizer(row.text.strip(), truncation=True, max_length=READ)["input_ids"]
    return replace(row, text=PROMPT.format(text=tokenizer.decode(ids)))
