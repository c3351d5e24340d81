"""Questions with known answers, and how a composed model is asked them.

Three kinds of model answer in three ways, all of them by choosing among candidates:

* an encoder: the candidate whose embedding under the base is nearest to the text's (mean of the last layer);
* a language model: the candidate of the largest mean log-likelihood per token after the prompt;
* a classifier whose experts have heads: the class of the largest logit, among the classes of all experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.backbones.text import mean_over_tokens
from moe_adapt.data.labels import column_of, label_text, number_labels
from moe_adapt.data.tables import TableSource, describe, load_table, texts_of
from moe_adapt.errors import UserError

__all__ = ["Judge", "Question", "read_questions"]

_TEXT = ("text", "prompt", "question", "sentence", "instruction")
_ANSWER = ("label", "answer", "response", "output", "category")


@dataclass(frozen=True)
class Question:
    """A text and the candidates for its answer.

    Attributes:
        text: The text.
        candidates: Possible answers.
        answer: Place of the right one.
    """

    text: str
    candidates: tuple[str, ...]
    answer: int


def read_questions(source: TableSource) -> list[Question]:
    """Read questions: a column of texts, one of answers, and perhaps ``choices``.

    Args:
        source: File, folder, name on the Hub or rows. Without ``choices`` the candidates are all different
            answers, sorted (numbers as numbers).

    Raises:
        UserError: If a column is missing, or an answer is none of the row's choices.
    """
    table = load_table(source, "test")
    asked, answered = (
        next((c for c in names if c in table.column_names), None) for names in (_TEXT, _ANSWER)
    )
    if asked is None or answered is None:
        raise UserError(
            f"{describe(source)} needs a column of texts ({', '.join(_TEXT)}) and one of answers "
            f"({', '.join(_ANSWER)}); it has {', '.join(table.column_names)}."
        )
    where = describe(source)
    texts, answers = texts_of(table, asked, source), list(table[answered])
    offered = list(table["choices"]) if "choices" in table.column_names else [None] * len(answers)
    known = [answer for answer, choices in zip(answers, offered, strict=True) if not choices]
    ordered = number_labels(column_of(known, where))[1] if known else []
    rows = enumerate(zip(texts, answers, offered, strict=True))
    return [
        _question(text, answer, choices, ordered, f"row {row} of {where}")
        for row, (text, answer, choices) in rows
    ]


def _question(text: str, answer: Any, choices: Any, ordered: list[str], where: str) -> Question:
    if choices and not (isinstance(choices, list) and all(isinstance(c, str | int | float) for c in choices)):
        raise UserError(f"{where} has the choices {str(choices)[:60]!r}: expected a list of texts.")
    names = tuple(str(choice) for choice in choices or ordered)
    label = label_text(answer, where)
    if choices and type(answer) is int and 0 <= answer < len(names):
        return Question(text, names, answer)
    if label not in names:
        raise UserError(f"{where} has the answer {answer!r}, none of its choices.")
    return Question(text, names, names.index(label))


class Judge:
    """Asks a model questions.

    Args:
        tokenizer: The tokeniser.
        max_length: Tokens read of a text.
        starts: First class of each expert in the logits, if experts have heads.
        language: Whether the model continues texts.
        batch_size: Rows per forward.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        starts: Mapping[str, int] | None = None,
        language: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.starts, self.language, self.batch_size = starts, language, batch_size
        self._names: dict[tuple[str, ...], Tensor] = {}

    def learn_names(self, model: Any, questions: Sequence[Question]) -> None:
        """Embed the candidates by the base; an encoder's answers are compared with these."""
        if self.starts is None and not self.language:
            for names in {question.candidates for question in questions} - self._names.keys():
                self._names[names] = torch.cat(
                    [self._embed(model, names[i : i + 64]) for i in range(0, len(names), 64)]
                )

    @torch.no_grad()
    def right(
        self,
        model: Any,
        questions: Sequence[Question],
        uid: str | None = None,
        ids: Sequence[Any] | None = None,
    ) -> Tensor:
        """Return whether each question is answered right, bool [N].

        Args:
            model: The model; a composed one takes `ids`.
            questions: The questions.
            uid: Expert that the questions are for, whose classes are meant if experts have heads.
            ids: Expert that has to answer each; None asks the model as it is.
        """
        found = torch.zeros(len(questions), dtype=torch.bool)
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].text))
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            part = [questions[i] for i in numbers]
            told = {} if ids is None else {"adapter_ids": [ids[i] for i in numbers]}
            found[numbers] = self._ask(model, part, uid, told)
        return found

    def _ask(self, model: Any, part: list[Question], uid: str | None, told: dict[str, Any]) -> Tensor:
        if self.language:
            return self._continued(model, part, told)
        if self.starts is not None:
            logits = model(**self._tokens([q.text for q in part], model), **told).logits
            wanted = torch.tensor([self.starts[str(uid)] + q.answer for q in part])
            return logits.argmax(-1).cpu() == wanted
        vectors = self._embed(model, [q.text for q in part], told)
        best = [int((v @ self._names[q.candidates].t()).argmax()) for v, q in zip(vectors, part, strict=True)]
        return torch.tensor([place == q.answer for place, q in zip(best, part, strict=True)])

    def _tokens(self, texts: Sequence[str], model: Any) -> dict[str, Tensor]:
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        device = next(model.parameters()).device
        return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def _embed(self, model: Any, texts: Sequence[str], told: dict[str, Any] | None = None) -> Tensor:
        batch = self._tokens(texts, model)
        hidden = model(**batch, **(told or {})).last_hidden_state
        return F.normalize(mean_over_tokens(hidden, batch["attention_mask"]).float(), dim=-1).cpu()

    def _continued(self, model: Any, part: list[Question], told: dict[str, Any]) -> Tensor:
        """Answer by likelihood: one row per candidate, all rows of a question with one decision."""
        rows, prompts, owners = [], [], []
        encode = self.tokenizer
        for number, question in enumerate(part):
            prompt = encode(question.text, truncation=True, max_length=self.max_length)["input_ids"]
            for candidate in question.candidates:
                answer = encode(f" {candidate}", add_special_tokens=False)["input_ids"]
                rows.append(prompt + answer)
                prompts.append(len(prompt))
                owners.append(number)
        width, device = max(map(len, rows)), next(model.parameters()).device
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id, device=device)
        mask, asked = torch.zeros_like(ids), torch.zeros_like(ids)
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            ids[place, : len(row)] = torch.tensor(row, device=device)
            mask[place, : len(row)] = 1
            asked[place, :prompt] = 1
        own = {} if not told else {"adapter_ids": [told["adapter_ids"][number] for number in owners]}
        routed = hasattr(model, "peft_config") and hasattr(model.base_model, "sample_routes")
        extra = {"prompt_mask": asked} if routed else {}
        logits = model(input_ids=ids, attention_mask=mask, **own, **extra).logits.float().log_softmax(-1)
        taken = logits[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
        counted = (mask - asked)[:, 1:].float()
        score = (taken * counted).sum(1) / counted.sum(1).clamp(min=1)
        right = []
        for number, question in enumerate(part):
            own_rows = [i for i, owner in enumerate(owners) if owner == number]
            right.append(int(score[own_rows].argmax()) == question.answer)
        return torch.tensor(right)
