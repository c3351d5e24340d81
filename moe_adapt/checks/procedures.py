"""Checks that every procedure passes, ours and yours, on a tiny classifier of random tokens."""

from collections.abc import Callable
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from moe_adapt.backbones.pretrained import Backbone
from moe_adapt.training.modules.base import Batch
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.training.procedures import PROCEDURES, Procedure
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["CheckedClassifier", "check_procedure", "toy_batches"]

CLASSES, BATCHES = 3, 3
#: How activations are kept: as they are, or recomputed in one of two ways.
Checkpointing = Literal["none", "reentrant", "non-reentrant"]


class CheckedClassifier(Classifier):
    """A two-layer BERT with random weights under a routed adapter, in float64.

    Args:
        procedure: How it is trained; None for one pass and the task loss.
        tuner: The adapter; None for three experts of rank 2, two per token, with a load-balance loss.
        checkpointing: How activations are kept.
        settings: Arguments of `AdaptedModule`.
    """

    def __init__(
        self,
        procedure: Procedure | None = None,
        tuner: RoutedLoraConfig | None = None,
        checkpointing: Checkpointing = "none",
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
        config.num_labels = CLASSES
        model = BertForSequenceClassification(config)
        if checkpointing != "none":
            reentrant = {"use_reentrant": checkpointing == "reentrant"}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
            model.enable_input_require_grads()
        adapter = tuner or RoutedLoraConfig(
            method="top_k",
            num_experts=3,
            r=2,
            dropout=0.1,
            target_modules=["query", "dense"],
            exclude_modules=".*pooler.*",
        )
        super().__init__(
            Backbone(model, ["classifier"]),
            "toy",
            CLASSES,
            tuner=adapter,
            procedure=procedure,
            **{"lr": 1e-2} | settings,
        )
        generator = torch.Generator().manual_seed(1)
        for parameter in (p for _, p in sorted(self.named_parameters()) if p.requires_grad):
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        self.double()

    def settings(self) -> dict[str, Any]:
        """Return nothing: a toy has no settings."""
        return {}

    def logits(self, batch: Batch) -> Tensor:
        """Return class logits, [B, 3]."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model(**inputs, **self.for_routers(batch)).logits


def toy_batches(count: int = BATCHES, rows: int = 6, length: int = 7) -> list[Batch]:
    """Return batches of random tokens with padding, labels, and two domains."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        ids = torch.randint(1, 50, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, -3:] = 0
        labels = torch.randint(CLASSES, (rows,), generator=generator)
        domains = torch.arange(rows) % 2
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "domain_ids": domains})
    return found


def check_procedure(make: Callable[[], Procedure], tuner: RoutedLoraConfig | None = None) -> None:
    """Check a procedure: it trains the adapter and nothing else, repeatably, under both checkpointings too.

    Args:
        make: Makes the procedure, a new one at each call.
        tuner: The adapter that it is to train; None for `CheckedClassifier`'s.

    Raises:
        AssertionError: If a property does not hold.
    """
    procedure = make()
    settings = procedure.settings()
    if settings["name"] in PROCEDURES:
        again = PROCEDURES.build(settings).settings()
        assert again == settings, "settings() gives the constructor's arguments, as JSON types"
    module = CheckedClassifier(procedure, tuner)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    needs = {name: p.requires_grad for name, p in module.named_parameters()}
    steps = _fit(module)
    after = dict(module.named_parameters())
    assert steps == BATCHES * (procedure.steps_per_batch or 1), "it takes the optimizer steps that it says"
    assert all(bool(torch.isfinite(p).all()) for p in after.values()), "every parameter stays finite"
    moved = [name for name, p in after.items() if not torch.equal(p, before[name])]
    assert moved, "training moves something"
    assert all(needs[name] for name in moved), "the frozen base does not move"
    assert needs == {name: p.requires_grad for name, p in after.items()}, "it thaws and freezes nothing"
    assert module.training, "it leaves the module in training mode"
    for kind in ("none", "non-reentrant", "reentrant"):
        other = CheckedClassifier(make(), tuner, cast(Checkpointing, kind))
        _fit(other)
        for name, parameter in other.named_parameters():
            close = torch.allclose(parameter, after[name], rtol=1e-6, atol=1e-9)
            same = torch.equal(parameter, after[name]) if kind == "none" else close
            assert same, f"a second run ends the same, with checkpointing {kind} too: {name} differs"


def _fit(module: CheckedClassifier) -> int:
    """Train for one epoch and return the optimizer steps taken."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    batches: Any = toy_batches()
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer.global_step
