"""Causal language modelling: next-token loss, perplexity, and multiple choice by likelihood."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from moe_adapt.backbones.packing import check_packing
from moe_adapt.backbones.pretrained import Backbone, Precision, load_pretrained
from moe_adapt.backbones.quantize import Quantize
from moe_adapt.data.packages import local_model
from moe_adapt.data.prompts import IGNORED
from moe_adapt.evaluation.likelihood import pick_choices, token_log_likelihood
from moe_adapt.training.modules.base import AdaptedModule, Batch
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["CausalLM", "left_padded"]


def left_padded(input_ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Move the kept tokens of each row to its right end, as generation needs them.

    Args:
        input_ids: Token ids, [B, S].
        keep: Tokens to keep, bool [B, S].

    Returns:
        Token ids [B, S'] (the others' values are arbitrary) and their mask [B, S'], S' being the longest row.

    >>> ids = torch.tensor([[5, 6, 0], [7, 8, 9]])
    >>> left_padded(ids, ids > 0)[1].tolist()
    [[0, 1, 1], [1, 1, 1]]
    """
    longest = int(keep.sum(dim=1).max())
    order = keep.long().argsort(dim=1, stable=True)
    return input_ids.gather(1, order)[:, -longest:], keep.gather(1, order)[:, -longest:].long()


class Perplexity(MeanMetric):
    """The exponential of a mean loss per token."""

    def compute(self) -> Tensor:
        """Return the perplexity so far."""
        return super().compute().exp()


class CausalLM(AdaptedModule):
    """An adapted causal language model.

    Logs ``val/loss`` (mean over tokens) and ``val/perplexity``; on multiple-choice batches ``val/loss`` (of
    the right choice's tokens), ``val/acc`` (highest summed likelihood) and ``val/acc_norm`` (highest
    likelihood per token); the same under ``test/``. Without a tuner it can be validated and tested, not
    trained.

    Args:
        backbone: Name on the Hub, or folder, of the pretrained model.
        tuner: The adapter.
        gguf_file: Name of a GGUF file inside `backbone` to read the weights from (needs the package `gguf`).
        dtype: Precision of the frozen weights; the adapter is float32.
        quantize: Hold the frozen linear layers in ``4bit`` or ``8bit`` (needs the extra `quantized`).
        max_new_tokens: How many tokens `predict` generates at most.
        settings: Arguments of `AdaptedModule`.
    """

    task_type = "CAUSAL_LM"

    def __init__(
        self,
        backbone: str,
        tuner: RoutedLoraConfig | None = None,
        gguf_file: str | None = None,
        dtype: Precision = "float32",
        quantize: Quantize | None = None,
        max_new_tokens: int = 64,
        **settings: Any,
    ) -> None:
        built = build(backbone, gguf_file, dtype, quantize)
        super().__init__(backbone=built, name=backbone, tuner=tuner, **settings)
        self.gguf_file, self.dtype_name, self.max_new_tokens = gguf_file, dtype, max_new_tokens
        self.quantize = quantize
        stages = ("val", "test")
        kinds = {"loss": MeanMetric, "perplexity": Perplexity, "acc": MeanMetric, "acc_norm": MeanMetric}
        self.metrics = nn.ModuleDict(
            {f"{stage}_{kind}": new() for stage in stages for kind, new in kinds.items()}
        )

    @classmethod
    def base_model(
        cls,
        backbone: str,
        gguf_file: str | None = None,
        dtype: Precision = "float32",
        quantize: Quantize | None = None,
    ) -> nn.Module:
        """Return the bare model, on which `PeftModel.from_pretrained(model, folder)` puts an adapter."""
        return build(backbone, gguf_file, dtype, quantize).model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer, for generated text."""
        return AutoTokenizer.from_pretrained(local_model(self.name))

    def settings(self) -> dict[str, Any]:
        """Return the settings that shape the model."""
        shaping: dict[str, Any] = {"gguf_file": self.gguf_file, "dtype": self.dtype_name}
        return shaping if self.quantize is None else shaping | {"quantize": self.quantize}

    def forward(self, batch: Batch) -> Tensor:
        """Return next-token logits, [M, S, V]; of packed rows (with ``position_ids``) each example's own."""
        packed = "position_ids" in batch
        seen = {"position_ids" if packed else "attention_mask"}
        inputs = {name: batch[name] for name in ("input_ids", *seen)}
        return self.model(**inputs, use_cache=False, **self.for_routers(batch)).logits

    def for_routers(self, batch: Batch) -> Batch:
        """Return what routers look at; of packed rows also which tokens are real."""
        found = super().for_routers(batch)
        if self.tuner is not None and "position_ids" in batch:
            found["token_mask"] = batch["attention_mask"]
        return found

    def on_fit_start(self) -> None:
        """Check that the backbone keeps packed examples apart, if there are such.

        Raises:
            UserError: If it does not.
        """
        if getattr(self.trainer.datamodule, "packing", False):  # type: ignore[attr-defined]
            check_packing(self.model, self.name)
        super().on_fit_start()

    def task_loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the labelled tokens."""
        likelihood, count = token_log_likelihood(self(batch), batch["labels"])
        return -likelihood.sum() / count.sum().clamp(min=1)

    def scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits of the labelled tokens, [N, V], of one forward."""
        logits = self(batch)
        likelihood, count = token_log_likelihood(logits, batch["labels"])
        loss = -likelihood.sum() / count.sum().clamp(min=1)
        return loss, logits[:, :-1][batch["labels"][:, 1:] != IGNORED]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the validation metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the test metrics."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        likelihood, count = token_log_likelihood(self(batch), batch["labels"])
        if "answer" not in batch:
            loss, tokens = -likelihood.sum() / count.sum().clamp(min=1), count.sum()
            self._log(stage, "loss", loss, tokens)
            self._log(stage, "perplexity", loss, tokens)
            return
        answer, row = batch["answer"], batch["choice_row"]
        right = torch.stack([(row == i).nonzero()[answer[i], 0] for i in range(len(answer))])
        tokens = count[right].sum()
        self._log(stage, "loss", -likelihood[right].sum() / tokens.clamp(min=1), tokens)
        for kind, scores in (("acc", likelihood), ("acc_norm", likelihood / count.clamp(min=1))):
            hits = pick_choices(scores, row, len(answer)) == answer
            self._log(stage, kind, hits.float().mean(), torch.tensor(len(answer)))

    def _log(self, stage: str, kind: str, value: Tensor, weight: Tensor) -> None:
        metric: Any = self.metrics[f"{stage}_{kind}"]
        metric.update(value, weight)
        self.log(f"{stage}/{kind}", metric, prog_bar=kind != "perplexity")

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return generated texts, or the scores of choices.

        Returns:
            For multiple choice, ``scores`` (log-likelihoods, [M]), ``choice_row`` [M] and ``prediction`` [B];
            else the continuation of each row's prompt (the tokens before its labels), greedily decoded.
        """
        if "choice_row" in batch:
            scores, _ = token_log_likelihood(self(batch), batch["labels"])
            rows = batch["choice_row"]
            return {
                "scores": scores,
                "choice_row": rows,
                "prediction": pick_choices(scores, rows, int(rows.max()) + 1),
            }
        keep = batch["attention_mask"].bool()
        if "labels" in batch:
            keep = keep & ((batch["labels"] != IGNORED).cumsum(dim=1) == 0)
        prompt, mask = left_padded(batch["input_ids"], keep)
        pad = self.tokenizer.pad_token_id
        generated = self.model.generate(  # type: ignore[operator]
            input_ids=prompt,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
        )
        return self.tokenizer.batch_decode(generated[:, prompt.shape[1] :], skip_special_tokens=True)


def build(
    backbone: str, gguf_file: str | None, dtype: Precision, quantize: Quantize | None = None
) -> Backbone:
    """Load the pretrained model, all of it frozen; see `CausalLM` for the arguments."""
    options: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    loaded = load_pretrained(AutoModelForCausalLM, backbone, dtype, quantize=quantize, **options)
    return Backbone(loaded.model, [])
