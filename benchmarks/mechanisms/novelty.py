"""Signs of novelty on real texts: rows out of CLINC150's scope, and three domains without borders."""

import argparse
import json
import random
from typing import Any

import torch
from cells import train
from compare import adapted, ready
from frame import EIGHT, Experiment, Found
from tasks import mixture

from moe_adapt.evaluation.abstention import Abstention, auroc
from moe_adapt.evaluation.novelty import coverage_gap
from moe_adapt.evaluation.novelty_watch import NoveltyWatch
from moe_adapt.serving.abstain import Abstaining
from moe_adapt.serving.classify import Classifying
from moe_adapt.training.modules import SequenceClassifier

DOMAINS = ("sst2", "agnews", "clinc")


def intents(seed: int, args: argparse.Namespace) -> tuple[list[dict[str, str]], list[Any], list[str]]:
    """Return training rows, test rows (text, label) and out-of-scope texts of CLINC150."""
    raw = json.loads((args.data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    draw, by_intent = random.Random(seed), {}
    for text, label in raw["train"]:
        by_intent.setdefault(label, []).append(text)
    rows = [
        {"text": text, "label": label}
        for label in sorted(by_intent)
        for text in draw.sample(by_intent[label], args.train)
    ]
    outside = [text for text, _ in draw.sample(raw["oos_test"], args.test)]
    return rows, draw.sample(raw["test"], args.test), outside


def classifier(
    rows: list[dict[str, str]], seed: int, args: argparse.Namespace
) -> tuple[Abstaining, list[str]]:
    """Return a top-k adapter of four experts trained on the rows, and the names of its classes."""
    data = ready(rows, seed, args)
    module = adapted(EIGHT | {"num_experts": 4}, data.num_classes, args)
    train(module, data, args.epochs)
    names = [str(name) for name in data.class_names]
    answering = {
        "task": "text-classification",
        "class_names": names,
        "text_columns": ["text"],
        "max_length": args.max_length,
    }
    return Abstaining(Classifying(module.eval().model, answering, str(args.backbone), "default")), names


def signs(told: Abstaining, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features, logits and disagreement of texts."""
    parts = [told._signs([(text,) for text in texts[i : i + 64]]) for i in range(0, len(texts), 64)]
    found = [torch.cat([part[n] for part in parts if part[n] is not None]) for n in range(3)]
    return found[0], found[1], found[2]


def scope(seed: int, args: argparse.Namespace) -> Found:
    """Train on the intents, and tell out-of-scope rows from theirs."""
    rows, inside, outside = intents(seed, args)
    told, names = classifier(rows, seed, args)
    known = [row["text"] for row in random.Random(seed).sample(rows, args.known)]
    features, logits, doubt = signs(told, known)
    fitted = Abstention.fit(features, logits.argmax(dim=-1), doubt, share=0.05)
    new, old = signs(told, outside), signs(told, [text for text, _ in inside])
    right = torch.tensor([names[i] == label for i, (_, label) in zip(old[1].argmax(-1), inside, strict=True)])
    both = [fitted.novelty(part[0], part[2]) for part in (new, old)]
    kept = both[1] <= fitted.cut
    return {
        "coverage gap": {"auroc": auroc(*(coverage_gap(part[0], fitted.prototypes) for part in (new, old)))},
        "disagreement of experts": {"auroc": auroc(new[2], old[2])},
        "both (predict --abstain)": {
            "auroc": auroc(*both),
            "outside": float((both[0] > fitted.cut).double().mean()),
            "inside": float((~kept).double().mean()),
            "all": float(right.double().mean()),
            "answered": float(right[kept].double().mean()),
        },
        "largest probability (baseline)": {
            "auroc": auroc(*(-part[1].softmax(-1).amax(-1) for part in (new, old)))
        },
    }


def borders(seed: int, args: argparse.Namespace) -> Found:
    """Watch three domains one after the other, and shuffled."""
    rows = mixture(args.data, args.train, 1, seed)["train"]
    texts = [row["text"].partition(" ")[2] for task in DOMAINS for row in rows if row["task"] == task]
    module = SequenceClassifier(str(args.backbone), 2, None)
    answering = {"task": "text-classification", "class_names": ["a", "b"], "text_columns": ["text"]}
    model = Classifying(
        module.model.eval(), answering | {"max_length": args.max_length}, str(args.backbone), "default"
    )
    seen: list[torch.Tensor] = []
    head = next(layer for name, layer in module.model.named_modules() if name.endswith("classifier"))
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for start in range(0, len(texts), 64):
        model(texts[start : start + 64])
    handle.remove()
    features = torch.cat(seen)
    ordered, shuffled = NoveltyWatch(args.reference), NoveltyWatch(args.reference)
    ordered.observe(features)
    shuffled.observe(features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))])
    late = [
        min((alarm - place for alarm in ordered.alarms if place <= alarm < place + args.train), default=None)
        for place in (args.train, 2 * args.train)
    ]
    found = [rows for rows in late if rows is not None]
    early = sum(alarm < args.train for alarm in ordered.alarms)
    return {
        "domains in turn": {
            "alarms": float(len(ordered.alarms)),
            "found": float(len(found)),
            "late": sum(found) / len(found) if found else None,
            "false": float(early),
        },
        "the same rows shuffled": {
            "alarms": float(len(shuffled.alarms)),
            "false": float(len(shuffled.alarms)),
        },
    }


EXPERIMENTS = {
    "scope": Experiment(
        title="Rows out of scope (Transitive Expert Error)",
        text="Top-k with 4 experts on 5 rows of each of CLINC150's 150 intents (MiniLM). Test rows of the "
        "intents are told from out-of-scope test rows. Prototypes and calibration are of training rows, "
        "with a share of 5 % that may lose its answer.",
        measure=scope,
        heads={
            "auroc": "AUROC",
            "outside": "abstained, out of scope",
            "inside": "abstained, in scope",
            "all": "accuracy of all",
            "answered": "accuracy of answered",
        },
        settings={
            "train": 5,
            "known": 400,
            "test": 300,
            "epochs": 2,
            "batch": 32,
            "max_length": 32,
            "lr": 1e-3,
        },
        baseline="largest probability (baseline)",
        judged="auroc",
    ),
    "borders": Experiment(
        title="Three domains without borders (Transitive Expert Error)",
        text="Features of the frozen MiniLM over 400 rows of SST-2, then AG News, then CLINC150. An alarm "
        "is the trigger of new experts. *found* counts borders (of 2) with an alarm before the next; "
        "*late* is the rows between border and alarm.",
        measure=borders,
        heads={
            "alarms": "alarms",
            "found": "borders found",
            "late": "rows late",
            "false": "false alarms",
        },
        settings={"train": 400, "reference": 200, "max_length": 32},
    ),
}
