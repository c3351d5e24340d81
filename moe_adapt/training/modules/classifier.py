"""What classifiers share: cross-entropy, accuracy, macro F1, a check of the labels, probabilities."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from moe_adapt.backbones.pretrained import Backbone
from moe_adapt.errors import UserError
from moe_adapt.training.modules.base import AdaptedModule, Batch

__all__ = ["Classifier"]


class Classifier(AdaptedModule):
    """A backbone that gives one row of logits per sample.

    Logs ``val/loss``, ``val/acc`` and ``test/loss``, ``test/acc``, ``test/f1`` (macro).

    Args:
        backbone: The pretrained model and the paths of its head.
        name: Name or folder of the backbone.
        num_classes: How many classes there are, `C`.
        settings: Arguments of `AdaptedModule`.
    """

    monitor: ClassVar[tuple[str, Literal["min", "max"]]] = ("val/acc", "max")

    def __init__(self, backbone: Backbone, name: str, num_classes: int, **settings: Any) -> None:
        super().__init__(backbone=backbone, name=name, **settings)
        self.num_classes = num_classes
        accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_metrics = MetricCollection({"acc": accuracy}, prefix="val/")
        self.test_metrics = MetricCollection(
            {"acc": accuracy.clone(), "f1": MulticlassF1Score(num_classes, average="macro")}, prefix="test/"
        )

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Return class logits, [B, C]."""

    def forward(self, batch: Batch) -> Tensor:
        """Return class logits, [B, C]."""
        return self.logits(batch)

    def checked_labels(self, batch: Batch) -> Tensor:
        """Return the labels [B].

        Raises:
            UserError: If one is not one of the classes.
        """
        labels = batch["labels"]
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            bad = int(wrong[0])
            raise UserError(
                f"label {bad} is out of range: the model has {self.num_classes} classes, 0 to "
                f"{self.num_classes - 1}; set num_classes to that of the data."
            )
        return labels

    def task_loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return self.scored(batch)[0]

    def scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy and the class logits, [B, C], of one forward."""
        labels = self.checked_labels(batch)
        logits = self.logits(batch).float()
        return F.cross_entropy(logits, labels), logits

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the validation metrics."""
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the test metrics."""
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: Batch, stage: str, metrics: MetricCollection) -> None:
        labels = self.checked_labels(batch)
        logits = self.logits(batch).float()
        metrics.update(logits, labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), batch_size=labels.shape[0], sync_dist=True)
        self.log_dict(dict(metrics.items(keep_base=False)), prog_bar=True, batch_size=labels.shape[0])

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``probabilities`` [B, C] and ``prediction`` [B]."""
        probabilities = self.logits(batch).float().softmax(dim=-1)
        return {"probabilities": probabilities, "prediction": torch.argmax(probabilities, dim=-1)}
