"""A run's configuration against its data and its folder: compare the number of classes, write the file."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from moe_adapt.errors import UserError
from moe_adapt.files import write_file
from moe_adapt.runs.folder import CONFIG_FILE
from moe_adapt.runs.trust import sign

__all__ = ["CheckClasses", "SaveRunConfig"]


class SaveRunConfig(SaveConfigCallback):
    """Write the whole configuration into the run's folder when training starts.

    Not before: a resumed run has by then checked that its configuration fits the checkpoint.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: the parent would write here."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, on the first process only."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            for key in ("out", "resume", "overwrite", "baseline", "ckpt_path", "config"):
                config.pop(key, None)
            content = self.parser.dump(config, skip_unset=False, skip_validation=True)
            write_file(folder / CONFIG_FILE, content)
            sign(folder / CONFIG_FILE)


class CheckClasses(Callback):
    """Compare the number of classes of the model with that of the data when a run starts."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, now that the data is set up.

        Raises:
            UserError: If they differ.
        """
        found = getattr(trainer.datamodule, "num_classes", None)  # type: ignore[attr-defined]
        if found is not None and found != self.num_classes:
            raise UserError(
                f"model.num_classes is {self.num_classes}, but the data has {found} classes; leave "
                "num_classes out to take it from the data."
            )
