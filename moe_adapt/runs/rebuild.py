"""Rebuild a run's model and data from its folder: the classes and options in its configuration."""

from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule

import moe_adapt.training.datamodules
import moe_adapt.training.modules  # noqa: F401  the classes, for their bare names
from moe_adapt.errors import UserError
from moe_adapt.reading import read_yaml
from moe_adapt.runs.custom import import_custom_modules
from moe_adapt.runs.folder import CONFIG_FILE
from moe_adapt.runs.parser import RoutedParser
from moe_adapt.training.checkpoint import checkpoint_path, load_checkpoint

__all__ = ["load_data", "load_module", "read_run_config"]


def read_run_config(run: Path) -> dict[str, Any]:
    """Return the configuration that a run was started with.

    Args:
        run: The run folder.

    Raises:
        UserError: If the folder is not that of a run.
    """
    path = Path(run) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{run} is not the folder of a run: it has no {CONFIG_FILE}.")
    config = read_yaml(path, "the configuration of a run")
    if not isinstance(config, dict) or "model" not in config:
        raise UserError(f"{path} describes no model; it is not the configuration of a run.")
    return config


def load_module(run: str | Path, checkpoint: str | Path = "best") -> LightningModule:
    """Build the run's model and load its trained adapter, verified, on the CPU and in evaluation mode.

    Args:
        run: The run folder.
        checkpoint: ``"best"``, ``"last"`` or the path of a checkpoint.

    Raises:
        UserError: If the folder or the checkpoint is not there, or if they do not belong together.
    """
    config = read_run_config(Path(run))
    path = checkpoint_path(run, str(checkpoint))
    import_custom_modules(config.get("custom_modules") or [])
    parser = RoutedParser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    module = parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model
    load_checkpoint(module, path)
    return module.eval()


def load_data(run: str | Path) -> LightningDataModule:
    """Build the run's data module; nothing is read yet.

    Args:
        run: The run folder.

    Raises:
        UserError: If the folder is not that of a run with data.
    """
    config = read_run_config(Path(run))
    if not config.get("data"):
        raise UserError(f"the configuration of {run} names no data.")
    import_custom_modules(config.get("custom_modules") or [])
    parser = RoutedParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
