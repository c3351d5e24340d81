"""Tiny model and data classes, given to the command line through --custom_modules."""

from dataclasses import dataclass

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from moe_adapt.errors import UserError


@dataclass
class ToyTuner:
    method: str = "top_k"
    num_experts: int | list[int] | None = None


class ToyClassifier(L.LightningModule):
    def __init__(
        self, backbone: str, num_classes: int, tuner: ToyTuner | None = None, lr: float = 0.1, fail: str = ""
    ) -> None:
        super().__init__()
        if fail == "init":
            raise UserError("the toy refuses to be built.")
        self.save_hyperparameters()
        self.head = nn.Linear(4, num_classes)

    def training_step(self, batch, batch_idx):
        if self.hparams.fail == "step" and self.global_step == 1:
            raise UserError("the toy's loss is not finite at step 1.")
        if self.hparams.fail == "interrupt" and self.current_epoch == 1:
            raise KeyboardInterrupt
        inputs, labels = batch
        return nn.functional.cross_entropy(self.head(inputs), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.log("test/weight", self.head.weight.abs().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class ToyModel(L.LightningModule):
    def __init__(self, backbone: str) -> None:
        super().__init__()


class ToyData(L.LightningDataModule):
    def __init__(self, tokenizer: str, batch_size: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.tokenizer, self.batch_size, self.classes = tokenizer, batch_size, classes

    def setup(self, stage: str) -> None:
        if self.classes == 0:
            raise UserError("the toy data is empty.")
        self.num_classes = self.classes

    def _loader(self) -> DataLoader:
        rows = TensorDataset(torch.randn(8, 4), torch.arange(8) % self.classes)
        return DataLoader(rows, batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader
