"""Compare routed-LoRA methods with plain LoRA and with the controls, at equal trainable parameters.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to PREPARED minilm
    python benchmarks/routed_lora/compare.py --data $MOE_ADAPT_DATA --backbone PREPARED/minilm --runs RUNS

Every cell (method, seed) runs in a process of its own that is forked from this one, and leaves one JSON file
in RUNS; cells that are there are not run again. The result is ``benchmarks/results/routed_lora.json``.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cells import PAIRED_STEPS, run_cells, train, write_report
from lightning import Callback
from methods import CONTROLS, METHODS, PROCEDURES
from tasks import TASKS, mixture

from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.procedures import Procedure
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.layer import adapted_layers

RESULT = Path(__file__).resolve().parents[1] / "results" / "routed_lora.json"
SITES = r".*\.(query|value|intermediate\.dense|(?<!attention\.)output\.dense)"


def predict(module: SequenceClassifier, data: TextClassificationData) -> dict[str, float]:
    """Return the accuracy on each task's test rows, and their mean."""
    hits: dict[str, list[bool]] = {task: [] for task in TASKS}
    module.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in data.test_dataloader():
            unaided = {key: value for key, value in batch.items() if key != "domain_ids"}
            right = module(unaided).argmax(dim=-1) == batch["labels"]
            for domain, hit in zip(batch["domain_ids"].tolist(), right.tolist(), strict=True):
                hits[data.domains.names[domain]].append(hit)
    scores = {task: statistics.mean(rows) for task, rows in hits.items()}
    return scores | {"mean": statistics.mean(scores.values())}


def routing(module: SequenceClassifier, data: TextClassificationData) -> dict[str, float]:
    """Return how the routers use their experts on test rows, averaged over sites and batches."""
    tuner = module.tuner
    assert tuner is not None
    found: dict[str, list[float]] = {"entropy": [], "experts_per_token": [], "max_violation": []}
    with torch.inference_mode(), tuner.record():
        for batch, _ in zip(data.test_dataloader(), range(8), strict=False):
            module(batch)
            for stats in tuner.routing_stats().values():
                found["entropy"].append(stats.entropy)
                found["experts_per_token"].append(stats.mean_k)
                found["max_violation"].append(float(stats.load.max() * len(stats.load)) - 1)
    return {name: statistics.mean(values) for name, values in found.items()}


def adapted(
    options: dict[str, Any],
    classes: int,
    args: argparse.Namespace,
    sites: str = SITES,
    procedure: Procedure | None = None,
) -> SequenceClassifier:
    """Return the encoder with an adapter."""
    return SequenceClassifier(
        str(args.backbone),
        classes,
        RoutedLoraConfig(target_modules=sites, **options),
        lr=args.lr,
        head_lr=1e-2,
        schedule="cosine",
        warmup=0.06,
        procedure=procedure,
    )


def text_data(seed: int, args: argparse.Namespace) -> TextClassificationData:
    """Return the mixture as data to train on, in an order that the seed gives."""
    rows = mixture(args.data, args.train, args.test)
    return ready(rows["train"], seed, args, test=rows["test"], domain_column="task")


def ready(
    train: list[dict[str, Any]], seed: int, args: argparse.Namespace, **more: Any
) -> TextClassificationData:
    """Return rows as data to train on, in an order that the seed gives."""
    data = TextClassificationData(
        str(args.backbone),
        train=train,
        validation_fraction=0.0,
        max_length=args.max_length,
        batch_size=args.batch,
        group_by_length=True,
        seed=seed,
        **more,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def trained(
    options: dict[str, Any],
    seed: int,
    args: argparse.Namespace,
    sites: str = SITES,
    callbacks: Sequence[Callback] = (),
    procedure: Procedure | None = None,
) -> tuple[SequenceClassifier, TextClassificationData, dict[str, Any]]:
    """Return a module trained with one seed, its data, ready to test, and the facts of its training."""
    data = text_data(seed, args)
    module = adapted(options, data.num_classes, args, sites, procedure)
    facts = train(module, data, args.epochs, callbacks=callbacks)
    data.setup("test")
    return module, data, facts


def cell(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and test one method with one seed."""
    options = (METHODS | CONTROLS)[name][1]
    procedure = PROCEDURES[name]() if name in PROCEDURES else None
    module, data, facts = trained(options, seed, args, procedure=procedure)
    result = {"accuracy": predict(module, data)} | facts
    if options["method"] != "lora":
        result["routing"] = routing(module, data)
    if name.startswith("lora_mixer"):
        for layer in adapted_layers(module.model):
            for adapter, router in layer.routers.items():
                router.skeleton.selector.k = layer.specs[adapter].num_experts
        result["accuracy_dense"] = predict(module, data)
    data.setup("fit")
    plain = adapted(METHODS["lora_equal"][1], data.num_classes, args)
    again = adapted(options, data.num_classes, args, procedure=procedure)
    other, own = (train(model, data, args.epochs, steps=PAIRED_STEPS) for model in (plain, again))
    paired = zip(own["first_steps"], other["first_steps"], strict=True)
    del result["first_steps"]
    return result | {"step_to_lora": statistics.median(one / two for one, two in paired)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *CONTROLS], help="which methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=200, help="training rows per task")
    parser.add_argument("--test", type=int, default=200, help="test rows per task")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=40, help="tokens")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--collect", action="store_true", help="run nothing, gather the cells that are there")
    args = parser.parse_args()
    names = ("train", "test", "epochs", "batch", "max_length", "lr")
    settings = {key: getattr(args, key) for key in names}
    command = "routed_lora/compare.py --data DATA --backbone PREPARED/minilm --runs RUNS"
    if not args.collect:
        cells = [(name, seed) for seed in args.seeds for name in args.methods]
        run_cells(cells, args.runs, cell, args, command, settings)
    labels = {name: label for name, (label, _) in (METHODS | CONTROLS).items()}
    wanted = [(name, seed) for name in labels for seed in args.seeds]
    write_report(RESULT, wanted, args.runs, labels, command, settings, controls=list(CONTROLS))


if __name__ == "__main__":
    main()
