"""Pretrained models that answer instructions: language models by likelihood, text encoders by nearness.

A batch has the lists ``prompt``, ``answer`` and ``choices``, as instruction streams give them. An
`InstructionModel` says what the loss of the right answers is, how likely each choice is, and what it would
write.

* `CausalAnswerer` continues the prompt; a choice's score is the sum of its tokens' log-probabilities.
* A `Chooser` such as `ChoiceEncoder` puts prompt and choices into one vector space: the score is their
  cosine over a temperature. The vectors of choices come from the pretrained encoder without adapter: they are
  fixed targets, so that a word means the same in every task, and forgetting is in the prompts alone.

Prompts and answers are tokenised apart (`moe_adapt.data.prompts`). A prompt that is too long loses tokens:
a language model keeps its end, which is next to the answer, an encoder its beginning.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM

from moe_adapt.backbones.holder import Pretrained
from moe_adapt.backbones.pretrained import Precision, load_pretrained
from moe_adapt.backbones.text import mean_over_tokens
from moe_adapt.data.prompts import IGNORED, Example, encode_prompts, encode_responses, join
from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError

__all__ = ["CausalAnswerer", "ChoiceEncoder", "Chooser", "InstructionModel"]

Batch = dict[str, Any]


class InstructionModel(Pretrained, ABC):
    """A pretrained model that answers instructions."""

    #: Whether it can write an answer, or only choose one.
    writes: ClassVar[bool] = False

    @abstractmethod
    def answer_loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of the right answers of a batch, a scalar."""

    @abstractmethod
    def choice_scores(self, batch: Batch) -> list[Tensor]:
        """Return the scores of each sample's choices, B tensors [choices]."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Return a vector of each prompt from the pretrained model without adapter, [B, d]."""

    @abstractmethod
    def run(self, batch: Batch) -> Tensor:
        """Run the model on the prompts, for those who watch its layers; return one vector each, [B, d]."""

    def generate(self, batch: Batch, max_new_tokens: int = 16) -> list[str]:
        """Return what the model writes after each prompt.

        Raises:
            UserError: If it cannot write.
        """
        raise UserError(
            f"a {type(self).__name__} chooses and cannot write: every instruction needs choices, or take a "
            "language model."
        )

    def without_adapter(self) -> Any:
        """Return a context manager in which the adapter is switched off."""
        return self.model.disable_adapter() if self.adapted else nullcontext()  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


class CausalAnswerer(InstructionModel):
    """A causal language model that continues prompts.

    Args:
        backbone: Name on the Hub, or folder.
        max_length: Most tokens of prompt and answer together.
        template: How a prompt is put; names {prompt}.
        dtype: Precision of the frozen weights.
    """

    writes = True

    def __init__(
        self,
        backbone: str,
        max_length: int = 256,
        template: str = "{prompt}\nAnswer:",
        dtype: Precision = "float32",
    ) -> None:
        super().__init__(self._load(backbone, dtype), backbone)
        self.tokenizer = load_tokenizer(backbone, max_length)
        self.max_length, self.template, self.dtype_name = max_length, template, dtype

    def _load(self, backbone: str, dtype: Precision) -> Any:
        return load_pretrained(AutoModelForCausalLM, backbone, dtype).model

    def settings(self) -> dict[str, Any]:
        """Return length, template and precision."""
        own = {"max_length": self.max_length, "template": self.template, "dtype": self.dtype_name}
        return {**super().settings(), **own}

    def _prompts(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        texts = [self.template.format(prompt=batch["prompt"][row]) for row in rows]
        return encode_prompts(self.tokenizer, texts, chat=False)

    def _inputs(
        self, batch: Batch, rows: Sequence[int], answers: Sequence[str], end: bool
    ) -> dict[str, Tensor]:
        """Return padded prompts with answers: ids, mask and labels [M, S], and what belongs to the images."""
        responses = encode_responses(self.tokenizer, [f" {answer}" for answer in answers], end)
        examples = [
            join(prompt, response, self.max_length, int(batch["row"][row]))
            for row, prompt, response in zip(rows, self._prompts(batch, rows), responses, strict=True)
        ]
        return self._padded(examples)

    def _padded(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        pad = self.tokenizer.pad_token_id
        ids = [torch.tensor(example.input_ids) for example in examples]
        labels = [torch.tensor(example.labels) for example in examples]
        tensors = {
            "input_ids": pad_sequence(ids, True, self.tokenizer.eos_token_id if pad is None else pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True),
            "labels": pad_sequence(labels, True, IGNORED),
        }
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _token_losses(self, batch: Batch, rows: Sequence[int], inputs: dict[str, Tensor]) -> Tensor:
        """Return the negative log-probability of each learned token, [M, S - 1], 0 elsewhere."""
        labels = inputs.pop("labels")
        logits = self.model(**inputs, **self._extra(batch, rows)).logits[:, :-1].float()
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(labels.shape[0], -1)

    def _extra(self, batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return what the model gets beside tokens."""
        return {}

    def answer_loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-probability of the tokens of the right answers."""
        rows = range(len(batch["prompt"]))
        inputs = self._inputs(batch, rows, batch["answer"], end=True)
        learned = (inputs["labels"][:, 1:] != IGNORED).sum()
        return self._token_losses(batch, rows, inputs).sum() / learned

    def choice_scores(self, batch: Batch) -> list[Tensor]:
        """Return the log-probability of each choice."""
        counts = [len(choices) for choices in batch["choices"]]
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        choices = [choice for choices in batch["choices"] for choice in choices]
        inputs = self._inputs(batch, rows, choices, end=False)
        scores = -self._token_losses(batch, rows, inputs).sum(-1)
        return list(scores.split(counts))

    def run(self, batch: Batch) -> Tensor:
        """Return the mean hidden state over each prompt's tokens."""
        rows = range(len(batch["prompt"]))
        examples = [
            Example(ids[-self.max_length :], [IGNORED] * len(ids)) for ids in self._prompts(batch, rows)
        ]
        inputs = self._padded(examples)
        inputs.pop("labels")
        output = self.model(**inputs, **self._extra(batch, rows), output_hidden_states=True)
        return mean_over_tokens(output.hidden_states[-1].float(), inputs["attention_mask"])

    def embed(self, batch: Batch) -> Tensor:
        """Return the pretrained model's mean hidden state over each prompt's tokens."""
        with torch.no_grad(), self.without_adapter():
            return self.run(batch)

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int = 16) -> list[str]:
        """Return what the model writes greedily, prompt by prompt, up to the first line's end."""
        texts = []
        for row in range(len(batch["prompt"])):
            (prompt,) = self._prompts(batch, [row])
            ids = torch.tensor([prompt[-(self.max_length - max_new_tokens) :]], device=self.device)
            written = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **self._extra(batch, [row]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            text = str(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
            texts.append(text.strip().split("\n")[0])
        return texts


class Chooser(InstructionModel):
    """A model that puts texts into a vector space, where the choice nearest to the prompt is the answer.

    Args:
        model: The pretrained model.
        name: Name or folder of it.
        temperature: What cosines are divided by.
    """

    def __init__(self, model: nn.Module, name: str, temperature: float) -> None:
        super().__init__(model, name)
        if temperature <= 0:
            raise UserError(f"the temperature must be positive, got {temperature}.")
        self.temperature = temperature
        self._vectors: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """Return the temperature."""
        return {**super().settings(), "temperature": self.temperature}

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return a vector of each text, [texts, d], without normalisation."""

    def _choice_vectors(self, choices: Sequence[str]) -> Tensor:
        """Return unit vectors [choices, d] of the pretrained encoder, which never change and are kept."""
        new = [choice for choice in dict.fromkeys(choices) if choice not in self._vectors]
        if new:
            was_training = self.model.training
            self.model.eval()
            with torch.no_grad(), self.without_adapter():
                vectors = F.normalize(self.encode(new), dim=-1)
            self.model.train(was_training)
            self._vectors.update(zip(new, vectors.clone(), strict=True))
        return torch.stack([self._vectors[choice] for choice in choices]).to(self.device)

    def choice_scores(self, batch: Batch) -> list[Tensor]:
        """Return cosines over the temperature."""
        for row, choices in enumerate(batch["choices"]):
            if not choices:
                raise UserError(
                    f"the prompt {batch['prompt'][row][:60]!r} has no choices, which an encoder needs."
                )
        targets = [self._choice_vectors(choices) for choices in batch["choices"]]
        vectors = F.normalize(self.run(batch), dim=-1)
        return [target @ vector / self.temperature for target, vector in zip(targets, vectors, strict=True)]

    def answer_loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the right choice."""
        losses = [
            F.cross_entropy(scores, torch.tensor(choices.index(answer), device=scores.device))
            for scores, choices, answer in zip(
                self.choice_scores(batch), batch["choices"], batch["answer"], strict=True
            )
        ]
        return torch.stack(losses).mean()

    def run(self, batch: Batch) -> Tensor:
        """Return each prompt's vector, without normalisation."""
        return self.encode(batch["prompt"])

    def embed(self, batch: Batch) -> Tensor:
        """Return each prompt's vector from the pretrained encoder."""
        with torch.no_grad(), self.without_adapter():
            return self.run(batch)


class ChoiceEncoder(Chooser):
    """A text encoder that picks the choice nearest to the prompt.

    Args:
        backbone: Name on the Hub, or folder, of an encoder whose mean token vector stands for a text.
        max_length: Most tokens per text; longer ones lose their end.
        temperature: What cosines are divided by.
        dtype: Precision of the frozen weights.
    """

    def __init__(
        self, backbone: str, max_length: int = 128, temperature: float = 0.05, dtype: Precision = "float32"
    ) -> None:
        model: Any = load_pretrained(AutoModel, backbone, dtype).model
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output would be computed, adapted, and never used
        super().__init__(model, backbone, temperature)
        self.tokenizer = load_tokenizer(backbone, max_length)
        self.max_length, self.dtype_name = max_length, dtype

    def settings(self) -> dict[str, Any]:
        """Return length, temperature and precision."""
        return {**super().settings(), "max_length": self.max_length, "dtype": self.dtype_name}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of each text's token vectors."""
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        hidden = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return mean_over_tokens(hidden.last_hidden_state.float(), inputs["attention_mask"])
