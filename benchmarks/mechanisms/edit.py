"""Fewer and more experts after training: by use and likeness, and at random; before and after healing.

Use and gradients are those of the training rows; nothing is chosen on test rows.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from cells import train
from compare import predict
from frame import EIGHT, Experiment, Found, base, loaded

from moe_adapt.evaluation.trace.use import expert_use
from moe_adapt.experts.grouping import random_groups
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.expert_gradients import expert_utility
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.tracing import record_batches
from moe_adapt.tuner import duplicate_to, merge_experts, merge_to, prune_to, rehome_to
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.tracing import TraceRecorder

FOUR: dict[str, Any] = EIGHT | {"num_experts": 4}


def used(module: SequenceClassifier, data: TextClassificationData) -> dict[str, torch.Tensor]:
    """Return how much each expert is used over the training rows."""
    assert module.tuner is not None
    recorder = TraceRecorder(module.tuner, keep_probs=False)
    record_batches(module, data.train_dataloader(), recorder, 1000)
    return expert_use(recorder.trace())


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


def copied(module: Any, scores: dict[str, torch.Tensor]) -> None:
    """Copy experts up to eight; a token uses one of twins at most, so that top-k stays as it was."""
    duplicate_to(module.tuner, 8, scores, twin_exclusive=True)


def down(seed: int, args: argparse.Namespace) -> Found:
    """Make eight experts four."""
    tensors, data = base(seed, args)
    return _edited(
        seed,
        args,
        (tensors, data, EIGHT),
        {
            "unchanged, 8 experts": lambda module: None,
            "merged by likeness": lambda module: merge_to(module.tuner, 4, used(module, data)),
            "merged at random": lambda module: merge_experts(module.tuner, grouped(module, seed)),
            "pruned by use": lambda module: prune_to(module.tuner, 4, used(module, data)),
            "re-homed": lambda module: rehome_to(module.tuner, 4, used(module, data)),
        },
    )


def up(seed: int, args: argparse.Namespace) -> Found:
    """Make four experts eight."""
    tensors, data = base(seed, args, FOUR, epochs=1)
    return _edited(
        seed,
        args,
        (tensors, data, FOUR),
        {
            "unchanged, 4 experts": lambda module: None,
            "copies of the most useful": lambda module: copied(module, useful(module, data)),
            "random copies": lambda module: copied(module, drawn(module, seed)),
        },
    )


def _edited(seed: int, args: argparse.Namespace, start: Any, edits: dict[str, Callable[[Any], Any]]) -> Found:
    """Apply each edit to the trained adapter, test, train one more epoch and test again."""
    tensors, data, options = start
    found: Found = {}
    for name, apply in edits.items():
        module = loaded(tensors, data, seed, args, options)
        errors = apply(module)
        values = [e for site in errors.values() for e in site.values()] if isinstance(errors, dict) else []
        before = predict(module, data)["mean"]
        torch.manual_seed(seed)
        facts = train(module, data, 1)
        found[name] = {
            "error": sum(values) / len(values) if values else None,
            "before": before,
            "accuracy": predict(module, data)["mean"],
            "parameters": facts["trainable_parameters"] / 1e6,
        }
    return found


HEADS = {
    "before": "edited",
    "accuracy": "one epoch later",
    "parameters": "parameters (millions)",
}
EXPERIMENTS = {
    "edit_down": Experiment(
        title="Eight experts become four (MC-SMoE, DERN)",
        text="Top-k with 8 experts, two epochs on the mixture of five tasks (MiniLM). Then merged around "
        "the most used by likeness, merged in random groups, the least used pruned, or re-homed. Mean "
        "accuracy as it is and after one more epoch; the unchanged adapter goes on as long. *error* is "
        "what the cut to rank 4 loses.",
        measure=down,
        heads={"error": "error", **HEADS},
        baseline="unchanged, 8 experts",
    ),
    "edit_up": Experiment(
        title="Four experts become eight (Expert Upcycling)",
        text="Top-k with 4 experts, one epoch on the mixture. Then copies of the most useful (weight times "
        "gradient) or of random ones, and one more epoch; the unchanged adapter goes on as long.",
        measure=up,
        heads=HEADS,
        baseline="unchanged, 4 experts",
    ),
}
