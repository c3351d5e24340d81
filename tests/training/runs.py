"""Tiny modules, batches and trainers for the tests of training."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from moe_adapt.training.checkpoint import AtomicCheckpointIO
from moe_adapt.tuner import RoutedLoraConfig

NUM_CLASSES = 4


def routed(method: str = "top_k", **options: Any) -> RoutedLoraConfig:
    """Return a small adapter on every linear layer."""
    settings: dict[str, Any] = {"target_modules": "all-linear", "num_experts": 3, "r": 2, "dropout": 0.0}
    return RoutedLoraConfig(method=method, **settings | options)


def text_batches(count: int, size: int = 4, length: int = 9, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return classification batches of random tokens, the last two of every row padding."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        mask = torch.ones(size, length, dtype=torch.long)
        mask[:, -2:] = 0
        ids = torch.randint(6, 200, (size, length), generator=generator) * mask
        labels = torch.randint(NUM_CLASSES, (size,), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def loader(batches: list[Any]) -> DataLoader:
    """Return a loader that gives these batches in order."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, **options: Any) -> L.Trainer:
    """Return a quiet CPU trainer whose run folder is `folder`."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "enable_checkpointing": bool(options.get("callbacks")),
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "logger": False,
        "max_epochs": 1,
        "plugins": [AtomicCheckpointIO()],
    }
    return L.Trainer(**settings | options)
