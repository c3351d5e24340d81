"""What the experiments share: their description, and an adapter trained once for all that look at it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cells import train
from compare import adapted, text_data

from moe_adapt.hub.fingerprint import adapter_state
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier

__all__ = ["EIGHT", "MIXTURE", "Experiment", "Found", "base", "loaded"]

#: What an experiment measured with one seed: numbers by name, for each of its variants.
Found = dict[str, dict[str, float | None]]

#: Sizes of the mixture of five tasks in most experiments; the learning rate is that of the comparison.
MIXTURE: dict[str, Any] = {"train": 80, "test": 80, "epochs": 2, "batch": 16, "max_length": 40, "lr": 1e-3}
#: Options of the adapter that most experiments look at.
EIGHT: dict[str, Any] = {"method": "top_k", "num_experts": 8, "r": 4, "alpha": 8.0}


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        title: Heading of its table.
        text: What is measured, and on what.
        measure: Measures all variants with one seed.
        heads: Headings by the names of the numbers, in order.
        settings: Sizes that `measure` finds among its arguments.
        baseline: Variant that the others are compared with, paired by seed; None for none.
        judged: The number that is compared.
        margin: Difference below which two variants are equal for practical purposes.
        seeds: Which seeds.
    """

    title: str
    text: str
    measure: Callable[[int, argparse.Namespace], Found]
    heads: dict[str, str]
    settings: dict[str, Any] = field(default_factory=lambda: dict(MIXTURE))
    baseline: str | None = None
    judged: str = "accuracy"
    margin: float = 0.01
    seeds: tuple[int, ...] = (0, 1, 2)


def base(
    seed: int, args: argparse.Namespace, options: dict[str, Any] = EIGHT, epochs: int = 2
) -> tuple[dict[str, torch.Tensor], TextClassificationData]:
    """Return the tensors of an adapter trained on the mixture, from a file if one is there, and its data.

    Args:
        seed: Fixes start and order.
        args: Folders and sizes.
        options: Of the adapter.
        epochs: How long it is trained.
    """
    data = text_data(seed, args)
    words = f"{options['method']}-{options['num_experts']}-{epochs}-{args.train}-{seed}"
    path: Path = args.runs / f"trained-{words}.pt"
    if not path.is_file():
        torch.manual_seed(seed)
        module = adapted(options, data.num_classes, args)
        train(module, data, epochs)
        part = path.with_suffix(".part")
        torch.save(adapter_state(module), part)
        part.replace(path)
    data.setup("test")
    return torch.load(path, weights_only=True), data


def loaded(
    tensors: dict[str, torch.Tensor],
    data: TextClassificationData,
    seed: int,
    args: argparse.Namespace,
    options: dict[str, Any] = EIGHT,
    **more: Any,
) -> SequenceClassifier:
    """Return a new module with given tensors, in evaluation mode."""
    torch.manual_seed(seed)
    module = adapted(options, data.num_classes, args, **more)
    module.load_state_dict(tensors, strict=False)
    return module.eval()
