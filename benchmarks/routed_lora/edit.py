"""Fewer and more experts after training: by use and likeness, and at random; before and after healing.

    python benchmarks/routed_lora/edit.py --data $MOE_ADAPT_DATA --backbone PREPARED/minilm --runs RUNS

*down*: eight experts are trained for two epochs and become four: merged around the most used by likeness,
merged in random groups, the least used pruned, or re-homed. *up*: four experts are trained for one epoch and
become eight: copies of the most useful (weight times gradient), or of random ones. Each is tested as it is
and after one more epoch, beside the unchanged adapter that goes on as long. Use and gradients are those of
the training rows; nothing is chosen on test rows. The result is ``benchmarks/results/edit_experts.json``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cells import run_cells, train, write_report
from compare import SITES, predict
from tasks import mixture

from moe_adapt.evaluation.trace.use import expert_use
from moe_adapt.experts.grouping import random_groups
from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.expert_gradients import expert_utility
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.tracing import record_batches
from moe_adapt.tuner import RoutedLoraConfig, duplicate_to, merge_experts, merge_to, prune_to, rehome_to
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.tracing import TraceRecorder

RESULT = Path(__file__).resolve().parents[1] / "results" / "edit_experts.json"
EXPERTS = {"down": 8, "up": 4}
EPOCHS = {"down": 2, "up": 1}
LABELS = {"down": "8 to 4 experts", "up": "4 to 8 experts"}


def build(experts: int, classes: int, args: argparse.Namespace) -> SequenceClassifier:
    """Return the encoder with a fresh top-k adapter."""
    config = RoutedLoraConfig(method="top_k", num_experts=experts, r=4, alpha=8.0, target_modules=SITES)
    return SequenceClassifier(
        str(args.backbone), classes, config, lr=args.lr, head_lr=1e-2, schedule="cosine", warmup=0.06
    )


def used(module: SequenceClassifier, data: TextClassificationData) -> dict[str, torch.Tensor]:
    """Return how much each expert is used over the training rows."""
    assert module.tuner is not None
    recorder = TraceRecorder(module.tuner, keep_probs=False)
    record_batches(module, data.train_dataloader(), recorder, 1000)
    return expert_use(recorder.trace())


def edits(direction: str, seed: int, data: TextClassificationData) -> dict[str, Callable[[Any], Any]]:
    """Return the edits of a direction by name, each a function of the module."""
    if direction == "down":
        return {
            "unchanged": lambda module: None,
            "merged by likeness": lambda module: merge_to(module.tuner, 4, used(module, data)),
            "merged at random": lambda module: merge_experts(module.tuner, grouped(module, seed)),
            "pruned by use": lambda module: prune_to(module.tuner, 4, used(module, data)),
            "re-homed": lambda module: rehome_to(module.tuner, 4, used(module, data)),
        }
    return {
        "unchanged": lambda module: None,
        "copies of the most useful": lambda module: copied(module, useful(module, data)),
        "random copies": lambda module: copied(module, drawn(module, seed)),
    }


def grouped(module: Any, seed: int) -> dict[str, list[list[int]]]:
    """Return four random groups of every site."""
    layers = adapted_layers(module.tuner.model)
    return {layer.site: random_groups(8, 4, 1000 * seed + n) for n, layer in enumerate(layers)}


def useful(module: Any, data: TextClassificationData) -> dict[str, torch.Tensor]:
    """Return the score of every expert over the training rows."""
    return expert_utility(module, data.train_dataloader(), "weight_gradient", 1000)


def drawn(module: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return random scores."""
    generator = torch.Generator().manual_seed(seed)
    return {layer.site: torch.rand(4, generator=generator) for layer in adapted_layers(module.tuner.model)}


def copied(module: Any, scores: dict[str, torch.Tensor]) -> list[str]:
    """Copy experts up to eight; a token uses one of twins at most, so that top-k stays as it was."""
    return duplicate_to(module.tuner, 8, scores, twin_exclusive=True)


def cell(direction: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train, edit in every way, test, heal and test again with one seed."""
    rows = mixture(args.data, args.train, args.test)
    data = TextClassificationData(
        str(args.backbone),
        train=rows["train"],
        test=rows["test"],
        domain_column="task",
        validation_fraction=0.0,
        max_length=args.max_length,
        batch_size=args.batch,
        group_by_length=True,
        seed=seed,
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    module = build(EXPERTS[direction], data.num_classes, args)
    train(module, data, EPOCHS[direction])
    trained = {name: tensor.clone() for name, tensor in adapter_state(module).items()}
    found = {}
    for name, apply in edits(direction, seed, data).items():
        torch.manual_seed(seed)
        edited = build(EXPERTS[direction], data.num_classes, args)
        edited.load_state_dict(trained, strict=False)
        errors = apply(edited)
        values = [e for site in errors.values() for e in site.values()] if isinstance(errors, dict) else []
        before = predict(edited, data)["mean"]
        facts = train(edited, data, 1)
        found[name] = {
            "before": before,
            "after": predict(edited, data)["mean"],
            "parameters": facts["trainable_parameters"],
            "error": sum(values) / len(values) if values else None,
        }
    return {"edits": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=50, help="training rows per task")
    parser.add_argument("--test", type=int, default=60, help="test rows per task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=40, help="tokens")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    settings = {key: getattr(args, key) for key in ("train", "test", "batch", "max_length", "lr")}
    command = "routed_lora/edit.py --data DATA --backbone PREPARED/minilm --runs RUNS"
    run_cells(
        [(name, seed) for seed in args.seeds for name in LABELS], args.runs, cell, args, command, settings
    )
    wanted = [(name, seed) for name in LABELS for seed in args.seeds]
    write_report(RESULT, wanted, args.runs, LABELS, command, settings)


if __name__ == "__main__":
    main()
