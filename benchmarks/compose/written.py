"""What whole language models write: a composed adapter that routes by itself, and what it is compared with.

An answer counts if greedy decoding writes the right one, to the letter, and then ends. The composed adapter
reads each prompt once, chooses after block 20 and keeps its choice for all tokens of the answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from encoder import Cached
from language import LOWER, LanguageHalves
from material import Cell, Material

from moe_adapt.hub.composition import compose
from moe_adapt.hub.composition.ingredients import read_all
from moe_adapt.hub.composition.merges import merge_model, weigh

__all__ = ["generated"]

#: Most tokens of an answer; test rows of each task that are answered.
WRITTEN, ROWS = 8, 40


def generated(m: Material, cell: Cell) -> None:
    """Measure whole models: what they write, and by how much a composed adapter is the one it chooses."""
    halves, picked = m.halves, [i for i, task in enumerate(m.tasks) if m.tasks[:i].count(task) < ROWS]
    part = m.test.take(picked)
    examples = {task: parts["train"].texts for task, parts in m.rows.items()}
    to = m.folder / "composed"
    compose(
        m.sources, examples, to, base=halves.whole(), tokenizer=halves.tokenizer, layer=LOWER,
        abstain=0.0, overwrite=to.is_dir(),
    )  # fmt: skip
    tasks = [m.tasks[i] for i in picked]
    found = {"base": write(halves, halves.whole(), part)}
    model = peft.PeftModel.from_pretrained(halves.whole(), str(to)).eval()
    found["LDA, 320 texts"] = write(halves, model, part)
    found["oracle"] = write(halves, model, part, tasks)
    model.unload()
    for name, folder in others(m, cell).items():
        model = peft.PeftModel.from_pretrained(halves.whole(), str(folder)).eval()
        found[name] = write(halves, model, part)
        model.unload()
    right = {name: [text == row.candidates[row.answer] for text, row in zip(own, part.rows, strict=True)]
             for name, own in found.items()}  # fmt: skip
    cell["written"] = {
        name: {task: [ok for ok, own in zip(hits, tasks, strict=True) if own == task] for task in m.rows}
        for name, hits in right.items()
    }
    cell["samples"] = {task: {name: own[tasks.index(task)] for name, own in found.items()} for task in m.rows}


def others(m: Material, cell: Cell) -> dict[str, Path]:
    """Return folders of the joint adapter, if there is one, and of the merge that is best on test rows."""
    found = {}
    joint = m.folder / "adapters" / "joint"
    if joint.is_dir():
        found[f"joint LoRA of rank {8 * len(m.sources)}"] = joint
    kind = max(cell["weights"], key=lambda kind: cell["accuracy"][f"merge {kind}"]["mean"])
    model, names = merge_model(m.halves.base, read_all(m.sources))
    weigh(model, names, kind, cell["weights"][kind])
    model.save_pretrained(str(m.folder), selected_adapters=["merged"])
    return found | {f"merge {kind}": m.folder / "merged"}


@torch.no_grad()
def write(halves: LanguageHalves, model: Any, data: Cached, ids: Sequence[str] | None = None) -> list[str]:
    """Return what a model writes after each prompt, by greedy decoding.

    Args:
        halves: Has the tokeniser.
        model: The whole model.
        data: The rows.
        ids: Adapter that answers each row; None lets the model choose.
    """
    tokenizer, found = halves.tokenizer, [""] * len(data)
    order = sorted(range(len(data)), key=lambda i: len(data.hidden[i]))
    for start in range(0, len(order), 20):
        numbers = order[start : start + 20]
        texts = [data.rows[i].text for i in numbers]
        batch = dict(tokenizer(texts, return_tensors="pt", padding=True, padding_side="left"))
        told = {} if ids is None else {"adapter_ids": [ids[i] for i in numbers]}
        length = batch["input_ids"].shape[1]
        output = model.generate(
            **batch, **told, do_sample=False, max_new_tokens=WRITTEN, pad_token_id=tokenizer.pad_token_id
        )
        written = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        for number, text in zip(numbers, written, strict=True):
            found[number] = text.strip()
    return found
