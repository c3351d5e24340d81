"""Removing an adapter unlearns its texts: an attack on membership learns what it learns of the base alone.

The attack is a threshold on the loss (`moe_adapt.evaluation.membership`).
"""

import random
import shutil

import peft
import pytest
import torch
from torch.nn import functional as F

from moe_adapt.evaluation.membership import membership_auc
from moe_adapt.hub.composition import compose, remove_adapter
from tests.hub.composition.kitchen import WORDS, batch, llama, save_lora, tokenizer

WORD_LIST = sorted({word for texts in WORDS.values() for text in texts for word in text.split()})


def drawn(count, seed):
    """Return random texts; nothing but having seen them tells members from others."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORD_LIST, k=8)) for _ in range(count)]


MEMBERS, OTHERS = drawn(12, 1), drawn(12, 2)


@torch.no_grad()
def losses(model, texts, **ids):
    inputs = batch(texts)
    logits = model(**inputs, **ids).logits[:, :-1].float()
    targets = inputs["input_ids"][:, 1:]
    found = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (found * inputs["attention_mask"][:, 1:]).sum(dim=1)


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """A LoRA that was trained on the members until it knew them, and one that never saw them."""
    folder = tmp_path_factory.mktemp("memorised")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs = batch(MEMBERS)
    for _ in range(60):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(folder / "own"))
    return {"own": str(folder / "own"), "other": save_lora(llama(), folder / "other", 3)}


@pytest.mark.parametrize("router", [None, "lda", "arrow"], ids=str)
def test_membership_is_forgotten_with_the_adapter(memorised, router, tmp_path):
    texts = {"own": MEMBERS, "other": WORDS["food"]} if router == "lda" else None
    to = tmp_path / "all"
    compose(memorised, texts, to, base=llama(), tokenizer=tokenizer(), router=router, layer=2)
    whole = peft.PeftModel.from_pretrained(llama(), str(to)).eval()
    known = {"adapter_ids": ["own"] * 12}
    assert membership_auc(losses(whole, MEMBERS, **known), losses(whole, OTHERS, **known)) > 0.95

    shutil.copytree(to, tmp_path / "less")
    remove_adapter(tmp_path / "less", "own")
    less = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "less")).eval()
    base = membership_auc(losses(llama(), MEMBERS), losses(llama(), OTHERS))
    assert abs(base - 0.5) < 0.3
    found = [losses(less, part) for part in (MEMBERS, OTHERS)]
    if router is None:  # whose id is gone, the base answers: the same losses, to the last bit
        assert torch.equal(found[0], losses(llama(), MEMBERS)) and membership_auc(*found) == base
        return
    never = tmp_path / "never"  # as if the adapter had never been there
    texts = None if texts is None else {"other": WORDS["food"]}
    one = {"other": memorised["other"]}
    compose(one, texts, never, base=llama(), tokenizer=tokenizer(), router=router, layer=2)
    control = peft.PeftModel.from_pretrained(llama(), str(never)).eval()
    expected = [losses(control, part) for part in (MEMBERS, OTHERS)]
    assert membership_auc(*found) == membership_auc(*expected)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    if router == "lda":
        left = [name is None for name in less.base_model.sample_routes().names()]
        plain = losses(llama(), OTHERS)
        assert all(torch.equal(found[1][row], plain[row]) for row, alone in enumerate(left) if alone)
