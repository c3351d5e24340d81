"""What a language model writes while it is trained: the same few validation prompts, again and again.

A loss says how likely the right answers are, not what the model says instead: that it never stops, repeats
itself or answers in another format can be seen here first.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info

from moe_adapt.data.prompts import IGNORED, Example
from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.causal_lm import CausalLMData
from moe_adapt.training.modules.causal_lm import CausalLM

__all__ = ["GenerationPreview"]

#: The most characters of a text that are printed; the file has all of them.
SHOWN = 300

#: Of plain text, which has no prompt, so many tokens are given.
GIVEN = 16


class GenerationPreview(L.Callback):
    """Let a language model answer a few validation prompts, greedily, and print and keep what it says.

    Texts are appended to ``previews.jsonl`` in the run's folder, and go to TensorBoard where it logs. Does
    nothing for other models, for multiple choice and without validation rows.

    Args:
        prompts: How many prompts, the first of the validation rows; 0 for none.
        every_n_steps: How often, in optimizer steps; None takes the end of every epoch.
        max_new_tokens: How many tokens to write at most.
    """

    def __init__(self, prompts: int = 2, every_n_steps: int | None = None, max_new_tokens: int = 40) -> None:
        if prompts < 0 or max_new_tokens < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise UserError("preview: prompts is at least 0, every_n_steps and max_new_tokens at least 1.")
        self.prompts = prompts
        self.every_n_steps = every_n_steps
        self.max_new_tokens = max_new_tokens
        self._last = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write after every so many steps."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._last:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write at the end of an epoch."""
        if self.every_n_steps is None:
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._last = trainer.global_step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dry: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        wanted = self.prompts and trainer.is_global_zero and not dry
        if not wanted or not isinstance(module, CausalLM) or not isinstance(data, CausalLMData):
            return
        examples = first_examples(data, self.prompts)
        if not examples:
            return
        batch = move_data_to_device(data.collate(examples), module.device)
        most, training = module.max_new_tokens, module.training
        module.max_new_tokens = self.max_new_tokens
        module.eval()
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                written = module.predict_step(batch, 0)
        finally:
            module.max_new_tokens = most
            module.train(training)
        self._show(trainer, module, examples, written)

    def _show(
        self, trainer: L.Trainer, module: CausalLM, examples: list[Example], written: list[str]
    ) -> None:
        decode = module.tokenizer.decode
        rows = []
        for example, text in zip(examples, written, strict=True):
            start, end = first_answer(example.labels)
            prompt = str(decode(example.input_ids[:start], skip_special_tokens=True))
            expected = str(decode(example.input_ids[start:end], skip_special_tokens=True))
            rows.append({"step": trainer.global_step, "prompt": prompt, "text": text, "expected": expected})
        with (Path(trainer.default_root_dir) / "previews.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for number, row in enumerate(rows):
            said = "\n".join(f"  {name}: {_cut(str(row[name]))}" for name in ("prompt", "text", "expected"))
            rank_zero_info(f"preview at step {trainer.global_step}:\n{said}")
            for logger in trainer.loggers:
                add = getattr(getattr(logger, "experiment", None), "add_text", None)
                if add is not None:
                    add(f"preview/{number}", str(row["text"]), global_step=trainer.global_step)


def first_answer(labels: list[int]) -> tuple[int, int]:
    """Return where the first learned part begins and where it ends.

    Args:
        labels: Labels of a row, [tokens].
    """
    start = next(place for place, label in enumerate(labels) if label != IGNORED)
    end = next((place for place in range(start, len(labels)) if labels[place] == IGNORED), len(labels))
    return start, end


def first_examples(data: CausalLMData, count: int) -> list[Example]:
    """Return the first validation rows with a prompt and an answer; none for multiple choice."""
    if "validation" not in data.splits:
        return []
    split = data.splits["validation"]
    found = data.made([split[row] for row in range(min(count, len(split)))])
    examples = []
    for example in found:
        if not isinstance(example, Example):
            return []
        given = sum(label == IGNORED for label in example.labels[:1]) or min(GIVEN, len(example.labels) - 1)
        labels = [IGNORED] * given + list(example.labels[given:])
        if given and any(label != IGNORED for label in labels):
            examples.append(Example(example.input_ids, labels, example.domain))
    return examples


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]} ..."
