"""Train and test one method on one draw of the data, through the same training stack as ``moe-adapt fit``."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L

from moe_adapt.demo.bbc import Row, few_shot_split
from moe_adapt.demo.progress import StepProgress
from moe_adapt.training.baselines import equal_parameter_lora
from moe_adapt.training.callbacks import LastCheckpoint, ManifestCallback, OutputFolderGuard, RoutingMonitor
from moe_adapt.training.checkpoint import AtomicCheckpointIO
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.loggers import run_loggers
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["METHODS", "Outcome", "Settings", "build_module", "run_method", "write_data"]

#: Rows of the result table: key and heading.
METHODS = {
    "head": "frozen base, linear head",
    "lora": "plain LoRA, equal parameters",
    "dynmole": "DynMoLE, 6 experts of rank 4",
}


@dataclass(frozen=True)
class Settings:
    """What all methods share.

    Attributes:
        backbone: Folder of the pretrained encoder.
        classes: Names of the classes.
        train_per_class: Training articles per class.
        test_per_class: Test articles per class.
        epochs: Passes over the training articles.
        batch_size: Articles per step.
        max_length: Tokens read of each article.
        lr: Learning rate of experts and router.
        head_lr: Learning rate of the head.
    """

    backbone: str
    classes: tuple[str, ...]
    train_per_class: int = 8
    test_per_class: int = 80
    epochs: int = 8
    batch_size: int = 8
    max_length: int = 48
    lr: float = 1e-3
    head_lr: float = 1e-2

    @property
    def steps(self) -> int:
        """Training steps and test batches of one run."""
        classes = len(self.classes)
        train = -(-self.train_per_class * classes // self.batch_size) * self.epochs
        return train + -(-self.test_per_class * classes // self.batch_size)


@dataclass(frozen=True)
class Outcome:
    """What one run reached.

    Attributes:
        method: Key of `METHODS`.
        seed: Seed of the data draw and of the training.
        accuracy: On the test articles.
        macro_f1: On the test articles.
        trainable: Trainable parameters, head included.
        seconds: Time of training.
        folder: The run's folder.
    """

    method: str
    seed: int
    accuracy: float
    macro_f1: float
    trainable: int
    seconds: float
    folder: str


def write_data(rows: list[Row], settings: Settings, seed: int, folder: Path) -> None:
    """Draw the articles of one seed into ``train.jsonl`` and ``test.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = few_shot_split(rows, settings.train_per_class, settings.test_per_class, seed)
    for name, split in zip(("train", "test"), splits, strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in split)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def build_module(method: str, settings: Settings, seed: int) -> SequenceClassifier:
    """Return the untrained classifier of a method."""

    def build(tuner: RoutedLoraConfig | None) -> SequenceClassifier:
        L.seed_everything(seed, verbose=False)
        return SequenceClassifier(
            backbone=settings.backbone,
            num_classes=len(settings.classes),
            tuner=tuner,
            lr=settings.lr,
            head_lr=settings.head_lr,
            schedule="linear",
        )

    if method == "head":
        return build(None)
    mixture = build(RoutedLoraConfig(method="dynmole", num_experts=6, r=4, alpha=8))
    return mixture if method == "dynmole" else build(equal_parameter_lora(mixture.model))  # type: ignore[arg-type]


def run_method(
    method: str, settings: Settings, seed: int, data_folder: Path, folder: Path, progress: StepProgress
) -> tuple[Outcome, SequenceClassifier]:
    """Train a method and test its last weights; nothing is chosen on the test articles.

    Args:
        method: Key of `METHODS`.
        settings: What all methods share.
        seed: Seed of initial values, order and dropout.
        data_folder: Where `write_data` put this seed's articles.
        folder: The run's folder; an earlier run there is replaced.
        progress: Is told of every step.
    """
    module = build_module(method, settings, seed)
    data = TextClassificationData(
        tokenizer=settings.backbone,
        train=str(data_folder / "train.jsonl"),
        test=str(data_folder / "test.jsonl"),
        class_names=list(settings.classes),
        validation_fraction=0.0,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        seed=seed,
    )
    monitor = RoutingMonitor(every_n_steps=1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=settings.epochs,
        default_root_dir=folder,
        logger=run_loggers(folder),
        callbacks=[
            OutputFolderGuard(overwrite=True),
            ManifestCallback(),
            monitor,
            LastCheckpoint(),
            progress,
        ],
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    outcome = Outcome(
        method=method,
        seed=seed,
        accuracy=metrics["test/acc"],
        macro_f1=metrics["test/f1"],
        trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        seconds=round(seconds, 1),
        folder=str(folder),
    )
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome), indent=2) + "\n", encoding="utf-8")
    return outcome, module
