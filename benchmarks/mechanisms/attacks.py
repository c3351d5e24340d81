"""Accuracy under attack: training against attacks on answer and routing, beside plain training."""

import argparse
import json
import random
from typing import Any

import lightning
import torch
from cells import train
from compare import adapted, ready
from frame import EIGHT, Experiment, Found

from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.procedures import AdvMoE
from moe_adapt.training.procedures.adversarial import attack, perturbed

LORA: dict[str, Any] = {"method": "lora", "r": 36, "alpha": 72.0}


def texts(seed: int, args: argparse.Namespace) -> TextClassificationData:
    """Return every seventh of CLINC150's intents, 20 in all."""
    raw = json.loads((args.data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    names = sorted({label for _, label in raw["train"]})[::7][: args.classes]
    draw, parts = random.Random(seed), {}
    for split, count in (("train", args.train), ("test", args.test)):
        parts[split] = []
        for name in names:
            own = [text for text, label in raw[split] if label == name]
            parts[split] += [{"text": text, "label": name} for text in draw.sample(own, count)]
    data = ready(parts["train"], seed, args, test=parts["test"])
    data.setup("test")
    return data


def accuracy(module: SequenceClassifier, data: TextClassificationData, eps: float, steps: int) -> float:
    """Return the accuracy on test rows that are attacked; the attack looks at the answer alone."""
    hits: list[bool] = []
    module.eval()
    for batch in data.test_dataloader():
        delta = attack(module, batch, eps, steps, 2.5 / steps, on_router=False)
        with torch.no_grad(), perturbed(module, batch, delta) as moved:
            hits += (module.scored(moved)[1].argmax(dim=-1) == batch["labels"]).tolist()
    return sum(hits) / len(hits)


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Train in every way, and attack."""
    found: Found = {}
    for label, options, procedure in (
        ("LoRA, equal parameters", LORA, None),
        ("top-k", EIGHT, None),
        ("top-k, AdvMoE", EIGHT, AdvMoE(eps=args.eps)),
    ):
        lightning.seed_everything(seed, verbose=False)
        data = texts(seed, args)
        module = adapted(options, data.num_classes, args, procedure=procedure)
        facts = train(module, data, args.epochs)
        row: dict[str, float | None] = {"clean": accuracy(module, data, 0.0, 1)}
        for share in (0.5, 1.0, 2.0):
            row[f"pgd_{share:g}"] = accuracy(module, data, share * args.eps, args.attack_steps)
        found[label] = row | {"step": facts["cpu_seconds_per_step"]}
    plain = found["LoRA, equal parameters"]["step"]
    return {label: row | {"step": row["step"] / plain} for label, row in found.items()}  # type: ignore[operator]


EXPERIMENTS = {
    "attacks": Experiment(
        title="20 intents under attack (AdvMoE)",
        text="10 training and 5 test texts of each of 20 intents of CLINC150 (MiniLM, three epochs). The "
        "attack moves the token embeddings within a box of eps of their standard deviations, 10 signed "
        "gradient steps on the answer. AdvMoE trains with 2 steps at eps 0.3.",
        measure=measure,
        heads={
            "clean": "clean",
            "pgd_0.5": "attacked, eps 0.15",
            "pgd_1": "eps 0.3",
            "pgd_2": "eps 0.6",
            "step": "time of a step",
        },
        settings={
            "classes": 20,
            "train": 10,
            "test": 5,
            "epochs": 3,
            "eps": 0.3,
            "attack_steps": 10,
            "batch": 16,
            "max_length": 24,
            "lr": 1e-3,
        },
        baseline="top-k",
        judged="pgd_1",
    )
}
