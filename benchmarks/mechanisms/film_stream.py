"""300 tasks with 32 numbers each: FiLM experts over one shared LoRA, on features of a frozen encoder.

The site is a linear layer that is the identity. A and B are learned on the first tasks and then frozen. Every
task learns its own expert from its own rows; at test time the task is known, and a drawing gets the class
whose mean is nearest.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import Experiment, Found
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.backbones import ImageEncoder
from moe_adapt.streams import ImageStream
from moe_adapt.tuner import RoutedLoraConfig


def features(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return features by class, [C, 5, d] to learn from and [C, 3, d] to test on, kept on disk."""
    path: Path = args.runs / "omniglot.npz"
    if not path.is_file():
        model_kwargs = {"img_size": 56, "depth": 6, "global_pool": "avg"}
        weights = str(args.prepared / "vit_s14" / "model.safetensors")
        encoder = ImageEncoder(
            "vit_small_patch14_dinov2", checkpoint=weights, model_kwargs=model_kwargs
        ).eval()
        own = {split: str(args.prepared / "omniglot" / f"{split}.npz") for split in ("train", "validation")}
        stream = ImageStream(
            train=own["train"],
            test=own["validation"],
            increment=5,
            train_per_class=5,
            test_per_class=3,
            image_size=56,
            augment=False,
            classes=5 * args.tasks,
        )
        found = {}
        for split in ("train", "test"):
            rows, labels = getattr(stream, split), np.asarray(getattr(stream, f"{split}_labels"))
            order = np.argsort(labels, kind="stable")
            with torch.inference_mode():
                parts = [
                    encoder(stream.collate([rows[int(row)] for row in some])).numpy()
                    for some in np.array_split(order, len(order) // 100)
                ]
            found[split] = np.concatenate(parts).reshape(5 * args.tasks, -1, encoder.width)
        np.savez(path, **found)
    with np.load(path) as kept:
        train, test = (torch.from_numpy(kept[split]) for split in ("train", "test"))
    mean, spread = train[: 5 * args.shared].mean((0, 1)), train[: 5 * args.shared].std((0, 1))
    return (train - mean) / spread, (test - mean) / spread


class Site(nn.Module):
    """A layer that is the identity, to carry an adapter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return self.layer(x)


def scores(drawings: Tensor, support: Tensor) -> Tensor:
    """Return the cosine of drawings [N, d] to the class means of [5, n, d], times 10."""
    return 10 * F.normalize(drawings, dim=-1) @ F.normalize(support.mean(1), dim=-1).T


def episode(model: Any, rows: Tensor, names: list[str], draw: torch.Generator) -> Tensor:
    """Return the loss of two drawings of each class by the means of its other three."""
    order = torch.randperm(rows.shape[1], generator=draw)
    seen = mapped(model, rows[:, order], names)
    drawings = seen[:, 3:].flatten(0, 1)
    return F.cross_entropy(scores(drawings, seen[:, :3]), torch.arange(5).repeat_interleave(2))


def mapped(model: Any, rows: Tensor, names: list[str]) -> Tensor:
    """Return rows [C, n, d] through the site, with the expert of the task if there are several."""
    flat = rows.flatten(0, 1)
    return model(flat, **({"adapter_ids": names * len(flat)} if names else {})).view_as(rows)


def adapter(method: str, experts: int, args: argparse.Namespace, width: int) -> Any:
    """Return the site with an adapter; the experts of FiLM start equal, so that each starts as the LoRA."""
    bank = {"bank": {"name": "film", "spread": 0.0}} if method == "film" else {}
    config = RoutedLoraConfig(
        method=method,
        num_experts=experts,
        r=args.rank,
        alpha=args.rank,
        dropout=0.0,
        target_modules=["layer"],
        **bank,
    )
    return get_peft_model(Site(width), config)


def learn(model: Any, tasks: list[Tensor], names: list[str], steps: int, seed: int, lr: float) -> None:
    """Take steps of Adam on episodes of tasks, one after the other."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, draw = torch.optim.Adam(own, lr=lr), torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.zero_grad()
        episode(model, tasks[step % len(tasks)], names, draw).backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(model: Any, train: Tensor, test: Tensor, names: list[str]) -> float:
    """Return the share of test drawings of one task that get their class."""
    support = mapped(model, train, names)
    said = scores(mapped(model, test, names).flatten(0, 1), support).argmax(-1)
    return float((said == torch.arange(5).repeat_interleave(test.shape[1])).float().mean())


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Learn the shared LoRA, then every later task in three ways."""
    torch.manual_seed(seed)
    train, test = features(args)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    train, test = train[order].split(5), test[order].split(5)
    width = train[0].shape[-1]
    later = range(args.shared, args.tasks)
    shared = adapter("lora", 1, args, width)
    learn(shared, list(train[: args.shared]), [], args.shared_steps, seed, args.lr)
    film = adapter("film", args.tasks, args, width)
    layer, source = film.base_model.model.layer, shared.base_model.model.layer
    for name in ("moe_adapt_A", "moe_adapt_B"):
        factor = getattr(layer, name)["default"]
        factor.data.copy_(getattr(source, name)["default"].data.view_as(factor))
        factor.requires_grad_(False)
    hits: dict[str, list[float]] = {"raw": [], "shared": [], "film": [], "lora": []}
    for task in later:
        rows = (train[task], test[task])
        names = [layer.specs["default"].names[task]]
        learn(film, [rows[0]], names, args.steps, seed, args.film_lr)
        alone = adapter("lora", 1, args, width)
        learn(alone, [rows[0]], [], args.steps, seed, args.lr)
        hits["raw"].append(accuracy(Site(width), *rows, []))
        hits["shared"].append(accuracy(shared, *rows, []))
        hits["lora"].append(accuracy(alone, *rows, []))
    hits["film"] = [
        accuracy(film, train[task], test[task], [layer.specs["default"].names[task]]) for task in later
    ]
    numbers = {"raw": 0, "shared": 0, "film": 2 * args.rank, "lora": 2 * args.rank * width}
    labels = {
        "raw": "frozen features",
        "shared": "the shared LoRA alone",
        "film": "a FiLM expert per task over it",
        "lora": "a LoRA per task",
    }
    return {
        label: {"accuracy": sum(hits[key]) / len(hits[key]), "numbers": 100.0 * numbers[key]}
        for key, label in labels.items()
    }


EXPERIMENTS = {
    "film_stream": Experiment(
        title="300 tasks, FiLM experts of 32 numbers (MoFME)",
        text="Omniglot: 300 tasks of 5 characters, 5 drawings each to learn from and 3 to test on; "
        "features of a frozen ViT-S (DINOv2-S fine-tuned for saliency, first 6 blocks), one adapted layer "
        "over them, rank 16. The shared LoRA is learned on the first 50 tasks; accuracy is over the other "
        "250, the task being known. FiLM experts are all tested after the last task.",
        measure=measure,
        heads={"accuracy": "accuracy", "numbers": "numbers for 100 tasks"},
        settings={
            "tasks": 300,
            "shared": 50,
            "shared_steps": 500,
            "steps": 10,
            "rank": 16,
            "lr": 1e-3,
            "film_lr": 2e-2,
        },
        baseline="the shared LoRA alone",
    )
}
