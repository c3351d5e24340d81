"""Signs of novelty on real texts: rows out of CLINC150's scope, and three domains without borders.

    python benchmarks/routed_lora/novelty.py --data $MOE_ADAPT_DATA --backbone PREPARED/minilm --runs RUNS

*scope*: a top-k adapter of four experts is trained on five rows of each of CLINC150's 150 intents. Prototypes
and calibration come from its training rows; test rows of the intents are told from out-of-scope test rows
by the coverage gap, by the disagreement of the experts, by both (`Abstention`), and by the largest
probability, the usual baseline. *stream*: features of the frozen encoder over rows of SST-2, then AG News,
then CLINC150 (400 each), and over the same rows shuffled, where every alarm is false. Nothing is chosen on
test rows. The result is ``benchmarks/results/novelty.json``.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from cells import run_cells, train, write_report
from compare import SITES
from tasks import mixture

from moe_adapt.evaluation.abstention import Abstention, auroc
from moe_adapt.evaluation.novelty import coverage_gap
from moe_adapt.evaluation.novelty_watch import NoveltyWatch
from moe_adapt.serving.abstain import Abstaining
from moe_adapt.serving.classify import Classifying
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.tuner import RoutedLoraConfig

RESULT = Path(__file__).resolve().parents[1] / "results" / "novelty.json"
LABELS = {"scope": "CLINC150, out of scope", "stream": "three domains without borders"}
ROWS = 400
REFERENCE = 200


def signs(told: Abstaining, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features, logits and disagreement of texts."""
    parts = [told._signs([(text,) for text in texts[i : i + 64]]) for i in range(0, len(texts), 64)]
    found = [torch.cat([part[n] for part in parts if part[n] is not None]) for n in range(3)]
    return found[0], found[1], found[2]


def scope(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train on the intents, and tell out-of-scope rows from theirs."""
    raw = json.loads((args.data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    draw = random.Random(seed)
    by_intent: dict[str, list[str]] = {}
    for text, label in raw["train"]:
        by_intent.setdefault(label, []).append(text)
    rows = [
        {"text": text, "label": label}
        for label in sorted(by_intent)
        for text in draw.sample(by_intent[label], args.train)
    ]
    data = TextClassificationData(
        str(args.backbone),
        train=rows,
        validation_fraction=0.0,
        max_length=args.max_length,
        batch_size=args.batch,
        group_by_length=True,
        seed=seed,
    )
    data.prepare_data()
    data.setup("fit")
    config = RoutedLoraConfig(method="top_k", num_experts=4, r=4, alpha=8.0, target_modules=SITES)
    module = SequenceClassifier(
        str(args.backbone), data.num_classes, config, lr=args.lr, head_lr=1e-2, schedule="cosine", warmup=0.06
    )
    train(module, data, args.epochs)
    module.eval()
    answering = {
        "task": "text-classification",
        "class_names": [str(name) for name in data.class_names],
        "text_columns": ["text"],
        "max_length": args.max_length,
    }
    told = Abstaining(Classifying(module.model, answering, str(args.backbone), "default"))
    known = [row["text"] for row in draw.sample(rows, args.known)]
    inside = draw.sample(raw["test"], args.test)
    outside = [text for text, _ in draw.sample(raw["oos_test"], args.test)]
    features, logits, doubt = signs(told, known)
    fitted = Abstention.fit(features, logits.argmax(dim=-1), doubt, share=0.05)
    new, old = signs(told, outside), signs(told, [text for text, _ in inside])
    right = [
        answering["class_names"][i] == label for i, (_, label) in zip(old[1].argmax(-1), inside, strict=True)
    ]
    both = [fitted.novelty(part[0], part[2]) for part in (new, old)]
    answered = [hit for hit, score in zip(right, both[1].tolist(), strict=True) if score <= fitted.cut]
    return {
        "auroc": {
            "coverage gap": auroc(*(coverage_gap(part[0], fitted.prototypes) for part in (new, old))),
            "disagreement": auroc(new[2], old[2]),
            "both": auroc(*both),
            "largest probability": auroc(*(-part[1].softmax(-1).amax(-1) for part in (new, old))),
        },
        "abstained": {
            "out of scope": float((both[0] > fitted.cut).double().mean()),
            "in scope": float((both[1] > fitted.cut).double().mean()),
        },
        "accuracy": sum(right) / len(right),
        "accuracy_where_answered": sum(answered) / max(len(answered), 1),
    }


def stream(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Watch three domains one after the other, and shuffled."""
    rows = mixture(args.data, ROWS, 1, seed)["train"]
    texts = [
        row["text"].partition(" ")[2]
        for task in ("sst2", "agnews", "clinc")
        for row in rows
        if row["task"] == task
    ]
    module = SequenceClassifier(str(args.backbone), 2, None)
    answering = {"class_names": ["a", "b"], "text_columns": ["text"], "max_length": args.max_length}
    model = Classifying(
        module.model.eval(), {"task": "text-classification", **answering}, str(args.backbone), "default"
    )
    seen: list[torch.Tensor] = []
    head = next(layer for name, layer in module.model.named_modules() if name.endswith("classifier"))
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for start in range(0, len(texts), 64):
        model(texts[start : start + 64])
    handle.remove()
    features = torch.cat(seen)
    ordered, shuffled = NoveltyWatch(REFERENCE), NoveltyWatch(REFERENCE)
    ordered.observe(features)
    shuffled.observe(features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))])
    return {
        "rows": len(texts),
        "borders": [ROWS, 2 * ROWS],
        "alarms": ordered.alarms,
        "false_alarms": len(shuffled.alarms),
    }


def cell(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one of the two with one seed."""
    return scope(seed, args) if name == "scope" else stream(seed, args)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=5, help="training rows per intent")
    parser.add_argument("--known", type=int, default=400, help="training rows that say what is known")
    parser.add_argument("--test", type=int, default=300, help="test rows of each kind")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=32, help="tokens")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    names = ("train", "known", "test", "epochs", "batch", "max_length", "lr")
    settings = {key: getattr(args, key) for key in names}
    command = "routed_lora/novelty.py --data DATA --backbone PREPARED/minilm --runs RUNS"
    run_cells(
        [(name, seed) for seed in args.seeds for name in LABELS], args.runs, cell, args, command, settings
    )
    wanted = [(name, seed) for name in LABELS for seed in args.seeds]
    write_report(RESULT, wanted, args.runs, LABELS, command, settings)


if __name__ == "__main__":
    main()
