"""Which start of the head, method and rank should the packaged recipes have? A small study on few rows.

Cells are written one by one into a JSON file and a second call goes on where the first stopped. A default is
chosen on the ``dev`` rows; ``test`` rows are other rows, looked at by the table alone. Needs the data folder
in MOE_ADAPT_DATA, and the extra ``demo`` for the encoder.

    python benchmarks/defaults/study.py starts
    python benchmarks/defaults/study.py methods
"""

import argparse
import csv
import json
import os
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

from moe_adapt import manifest
from moe_adapt.data.packages import MINILM, package_folder
from moe_adapt.training.baselines import equal_parameter_lora
from moe_adapt.training.callbacks import HeadStart
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.probe import Features, collect_features, last_linear
from moe_adapt.tuner import RoutedLoraConfig

RESULTS = Path(__file__).parents[1] / "results"
SEEDS = (0, 1, 2)

#: Start of the head: kind, weight decay of the probe, learning rate of the head.
STARTS: dict[str, tuple[str, float | None, float]] = {
    "random, 1e-3": ("random", None, 1e-3),
    "random, 1e-2": ("random", None, 1e-2),
    "probe, 1e-3": ("probe", None, 1e-3),
    "soft probe 0.1, 1e-3": ("probe", 0.1, 1e-3),
    "soft probe 1, 1e-3": ("probe", 1.0, 1e-3),
    "soft probe 1, 1e-2": ("probe", 1.0, 1e-2),
}

#: Routed methods: arguments of the tuner and learning rate.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "dynmole 6 x 24": ({"method": "dynmole"}, 5e-4),
    "dynmole 6 x 4": ({"method": "dynmole", "num_experts": 6, "r": 4, "alpha": 8}, 1e-3),
    "top_k 6 x 4": ({"method": "top_k", "num_experts": 6, "r": 4, "alpha": 8}, 1e-3),
    "LoRA, size of 6 x 24": ({"method": "dynmole"}, 5e-4),
    "LoRA, size of 6 x 4": ({"method": "dynmole", "num_experts": 6, "r": 4, "alpha": 8}, 1e-3),
    "lora r 8": ({"method": "lora", "target_modules": "ffn"}, 5e-4),
}
Rows = list[tuple[str, str]]


def banking77(root: Path) -> tuple[Rows, Rows]:
    """Return the training and test rows of Banking77."""
    splits = []
    for name in ("train", "test"):
        with (root / "banking77" / f"{name}.csv").open(encoding="utf-8") as file:
            splits.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return splits[0], splits[1]


def hwu64(root: Path) -> tuple[Rows, Rows]:
    """Return the training and test rows of HWU64."""
    folder = root / "intent_hwu64"
    splits = []
    for name in ("train", "test"):
        texts = (folder / f"{name}.seq.in").read_text(encoding="utf-8").splitlines()
        labels = (folder / f"{name}.label").read_text(encoding="utf-8").splitlines()
        splits.append(list(zip(texts, labels, strict=True)))
    return splits[0], splits[1]


def sst2(root: Path) -> tuple[Rows, Rows]:
    """Return the training and development rows of SST-2, the latter as test rows."""
    splits = []
    for name in ("train", "dev"):
        lines = (root / "glue_small" / f"sst2_{name}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = (line.rpartition("\t") for line in lines)
        splits.append([(text, "positive" if label == "1" else "negative") for text, _, label in pairs])
    return splits[0], splits[1]


#: Source, classes and training rows of each set.
SETS = {"banking77": (banking77, 40, 400), "hwu64": (hwu64, 50, 600), "sst2": (sst2, 2, 400)}


def draw(name: str, seed: int, folder: Path, test_rows: int = 500) -> dict[str, str]:
    """Write train, dev (400 rows of the training source) and test rows of one seed; return their files."""
    read, classes, count = SETS[name]
    training, testing = read(Path(os.environ["MOE_ADAPT_DATA"]))
    rng = random.Random(seed)
    chosen = set(rng.sample(sorted({label for _, label in training}), classes))
    training = [row for row in training if row[1] in chosen]
    testing = [row for row in testing if row[1] in chosen]
    rng.shuffle(training)
    rng.shuffle(testing)
    first = {label: row for row in reversed(training) for label in [row[1]]}  # every class has a training row
    rest = [row for row in training if row not in first.values()]
    parts = {
        "train": [*first.values(), *rest][:count],
        "dev": rest[count : count + 400],
        "test": testing[:test_rows],
    }
    files = {}
    for split, rows in parts.items():
        files[split] = str(folder / f"{split}.jsonl")
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        Path(files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def build(method: str, head_lr: float, classes: int, seed: int) -> SequenceClassifier:
    """Return the untrained classifier of a method."""
    options, lr = METHODS[method]
    L.seed_everything(seed, verbose=False)

    def module(tuner: RoutedLoraConfig | None) -> SequenceClassifier:
        return SequenceClassifier(
            backbone=str(package_folder(*MINILM)),
            num_classes=classes,
            tuner=tuner,
            lr=lr,
            head_lr=head_lr,
            schedule="cosine",
            warmup=0.06,
        )

    routed = module(RoutedLoraConfig(**options))
    if not method.startswith("LoRA"):
        return routed
    L.seed_everything(seed, verbose=False)
    return module(equal_parameter_lora(routed.model))  # type: ignore[arg-type]


def cell(name: str, start: str, method: str, seed: int) -> dict[str, Any]:
    """Train once, with the three epochs of the packaged recipe; return accuracies on dev and test rows."""
    kind, decay, head_lr = STARTS[start]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        files = draw(name, seed, Path(folder))
        data = TextClassificationData(
            tokenizer=str(package_folder(*MINILM)),
            train=files["train"],
            validation=files["dev"],
            test=files["test"],
            max_length=48,
            batch_size=32,
            group_by_length=True,
            seed=seed,
        )
        data.setup("fit")
        module = build(method, head_lr, data.num_classes, seed)
        head = HeadStart(kind=kind, weight_decay=decay)  # type: ignore[arg-type]
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=3,
            callbacks=[head],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
        data.setup("test")
        accuracy = {}
        for split, loader in (("dev", data.val_dataloader()), ("test", data.test_dataloader())):
            path = last_linear(module, data.num_classes)
            rows = collect_features(module, loader, path, 10**6)  # type: ignore[arg-type]
            accuracy[split] = _score(module.get_submodule(path), rows)  # type: ignore[arg-type]
    return {
        "set": name,
        "start": start,
        "method": method,
        "seed": seed,
        **accuracy,
        "baselines_dev": head.found.get("val/acc"),
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "processor_seconds": round(time.process_time() - began, 1),
    }


def _score(layer: Any, rows: Features) -> float:
    with torch.no_grad():
        return float((layer(rows.vectors).argmax(dim=1) == rows.labels).float().mean())


def plan(stage: str, start: str) -> list[tuple[str, str, str, int]]:
    """Return the cells of a stage: starts with two methods, or methods with one start."""
    if stage == "starts":
        seeds, pairs = SEEDS[:2], [(s, "dynmole 6 x 4") for s in STARTS]
    else:
        seeds, pairs = SEEDS, [(start, method) for method in METHODS]
    return [(name, s, method, seed) for seed in seeds for name in SETS for s, method in pairs]


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("starts", "methods"))
    parser.add_argument("--start", default="soft probe 1, 1e-3", choices=list(STARTS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    path = RESULTS / f"defaults_{options.stage}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"manifest": manifest.collect(), "rows": []}
    done = {(row["set"], row["start"], row["method"], row["seed"]) for row in found["rows"]}
    for one in plan(options.stage, options.start):
        if one not in done:
            row = cell(*one)
            print(row, flush=True)
            found["rows"].append(row)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
