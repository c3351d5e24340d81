"""Start a classifier's head from the linear probe, and measure the baselines that every result needs.

A new head at random has to be found by the same few steps that train the adapter; too small a learning rate
then ends below a linear probe on the frozen backbone. Here the head *is* that probe before the first step
(`moe_adapt.training.probe`), and its score on the held-out rows is the first candidate for the best
checkpoint: what a run keeps is never below the linear probe on those rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from moe_adapt.errors import UserError
from moe_adapt.training.callbacks.checkpoints import BestCheckpoint
from moe_adapt.training.checkpoint import read_checkpoint
from moe_adapt.training.datamodules.base import SeededDataModule
from moe_adapt.training.modules.classifier import Classifier
from moe_adapt.training.probe import (
    Features,
    LinearRule,
    choose_decay,
    class_means,
    collect_features,
    fit_probe,
    largest_class,
    last_linear,
)

__all__ = ["BASELINES", "HeadStart"]

#: Baselines without an adapter and how tables call them.
BASELINES = {
    "largest_class": "always the largest class",
    "nearest_mean": "nearest class mean",
    "linear_probe": "linear probe",
}


class HeadStart(L.Callback):
    """Begin a classifier from the linear probe of its backbone.

    Does nothing for other models, and in a resumed run.

    Args:
        kind: ``probe``: the head is the linear probe of the frozen backbone; ``random``: as it was made.
        weight_decay: Weight decay of the probe that the head starts from; None takes the one with the lowest
            loss on a fifth of the rows. Higher: the head points in the right direction and leaves more to the
            adapter.
        max_rows: The most training rows for the probe; images and texts beyond them are not looked at.
        measure: Whether to measure the baselines on the held-out rows.

    Attributes:
        found: Accuracy of the baselines on the held-out rows, the weight decay of the probe, rows, the score
            at the start; empty before training.
        rules: The baselines themselves, for the test.
    """

    def __init__(
        self,
        kind: Literal["probe", "random"] = "probe",
        weight_decay: float | None = None,
        max_rows: int = 20_000,
        measure: bool = True,
    ) -> None:
        if max_rows < 2:
            raise UserError(f"head_start.max_rows must be at least 2, got {max_rows}.")
        if weight_decay is not None and weight_decay <= 0:
            raise UserError(f"head_start.weight_decay must be above 0, got {weight_decay}.")
        self.kind = kind
        self.weight_decay = weight_decay
        self.max_rows = max_rows
        self.measure = measure
        self.found: dict[str, Any] = {}
        self.rules: dict[str, LinearRule] = {}

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {"head_start": self.found} if self.found else {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit the probe and put it into the head."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        wanted = self.kind == "probe" or self.measure
        if not wanted or not isinstance(pl_module, Classifier) or not isinstance(data, SeededDataModule):
            return
        path = last_linear(pl_module, pl_module.num_classes)
        if trainer.ckpt_path is not None or path is None:
            return
        with _without_adapter(pl_module):
            training, held_out = (self._features(trainer, pl_module, split, path) for split in _SPLITS)
        if training is None:
            return
        layer: Any = pl_module.get_submodule(path)
        shape = (pl_module.num_classes, layer.bias is not None)
        decay = choose_decay(training, *shape, pl_module.seed)
        probe = fit_probe(training, *shape, decay)
        self.rules = {
            "largest_class": largest_class(training, pl_module.num_classes),
            "nearest_mean": class_means(training, pl_module.num_classes),
            "linear_probe": probe,
        }
        self.found = {"kind": self.kind, "rows": len(training.labels), "weight_decay": decay}
        if held_out is not None:
            scores = {name: rule.accuracy(held_out) for name, rule in self.rules.items()}
            self.found |= {"held_out_rows": len(held_out.labels), "val/acc": scores}
        if self.kind == "probe":
            _fill(layer, probe, trainer)
            if _adapter_is_zero(pl_module):
                self._keep_the_start(trainer)
            if self.weight_decay is not None:
                _fill(layer, fit_probe(training, *shape, self.weight_decay), trainer)
        rank_zero_info(self._sentence())

    def _features(self, trainer: L.Trainer, module: Classifier, split: str, path: str) -> Features | None:
        data: SeededDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if split not in data.splits:
            return None
        loader = DataLoader(
            data.splits[split],
            batch_size=data.batch_size,
            collate_fn=data.collate,
            num_workers=data.num_workers,
        )
        limit = self.max_rows if split == "train" else len(data.splits[split])
        return collect_features(module, loader, path, limit, trainer.precision_plugin.forward_context())

    def _keep_the_start(self, trainer: L.Trainer) -> None:
        score = self.found.get("val/acc", {}).get("linear_probe")
        best = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
        dry: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        if score is not None and best and best[0].monitor == "val/acc" and not dry:
            best[0].begin_with(trainer, score)

    def _sentence(self) -> str:
        start = "head starts from the linear probe" if self.kind == "probe" else "head starts at random"
        scores = self.found.get("val/acc", {})
        words = ", ".join(f"{BASELINES[name]} {value:.4f}" for name, value in scores.items())
        return f"{start} ({self.found['rows']:,} rows)" + (f"; on held-out rows: {words}" if words else "")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the baselines of the run's checkpoint on the test rows."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.ckpt_path is None or not isinstance(pl_module, Classifier):
            return
        state = read_checkpoint(trainer.ckpt_path).get("callbacks", {}).get(self.state_key)
        path = last_linear(pl_module, pl_module.num_classes)
        if not state or not state["rules"] or path is None or not isinstance(data, SeededDataModule):
            return
        self.load_state_dict(state)
        with _without_adapter(pl_module):
            features = self._features(trainer, pl_module, "test", path)
        if features is not None:
            self.found["test/acc"] = {name: rule.accuracy(features) for name, rule in self.rules.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, for the test and for a resumed run."""
        rules = {name: [tensor.cpu() for tensor in rule] for name, rule in self.rules.items()}
        return {"found": self.found, "rules": rules}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's findings."""
        self.found = dict(state_dict["found"])
        self.rules = {name: LinearRule(*tensors) for name, tensors in state_dict["rules"].items()}


_SPLITS = ("train", "validation")


def _fill(layer: Any, rule: LinearRule, trainer: L.Trainer) -> None:
    """Put a rule, that of the first process, into a linear layer."""
    with torch.no_grad():
        layer.weight.copy_(trainer.strategy.broadcast(rule.weight))
        if layer.bias is not None:
            layer.bias.copy_(trainer.strategy.broadcast(rule.bias))


@contextmanager
def _without_adapter(module: Classifier) -> Iterator[None]:
    """Make the model the frozen backbone while the block runs; what was trainable stays so."""
    if module.tuner is None:
        yield
        return
    trainable = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    with module.model.disable_adapter():  # type: ignore[operator]
        yield
    for parameter, wanted in trainable:
        parameter.requires_grad_(wanted)


def _adapter_is_zero(module: Classifier) -> bool:
    """Return whether the adapter changes nothing yet: every expert's second factor is zero."""
    return not any(bool(p.any()) for name, p in module.named_parameters() if ".moe_adapt_B." in name)
