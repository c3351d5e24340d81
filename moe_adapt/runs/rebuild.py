"""Rebuild a run's model and data from its folder: the classes and options in its configuration."""

from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule

import moe_adapt.training.datamodules
import moe_adapt.training.modules
import moe_adapt.training.procedures  # noqa: F401  the classes, for their bare names
from moe_adapt.errors import UserError
from moe_adapt.reading import read_yaml
from moe_adapt.runs.custom import import_custom_modules
from moe_adapt.runs.folder import CONFIG_FILE
from moe_adapt.runs.messages import unwrapped
from moe_adapt.runs.parser import RoutedParser
from moe_adapt.runs.trust import check_trusted
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


def _trusted(run: str | Path, config: dict[str, Any], part: str, trust: bool) -> None:
    used = {key: config[key] for key in (part, "custom_modules") if key in config}
    check_trusted(Path(run) / CONFIG_FILE, used, trust)


def _made(parser: RoutedParser, config: dict[str, Any]) -> Any:
    try:
        return parser.instantiate_classes(parser.parse_object(config))
    except ValueError as error:
        raise unwrapped(error) from None


def load_module(run: str | Path, checkpoint: str | Path = "best", *, trust: bool = False) -> LightningModule:
    """Build the run's model and load its trained adapter, verified, on the CPU and in evaluation mode.

    Args:
        run: The run folder.
        checkpoint: ``"best"``, ``"last"`` or the path of a checkpoint.
        trust: Whether it may run code that its configuration names (`moe_adapt.runs.trust`).

    Raises:
        UserError: If the folder is not trusted with what it names, or it or the checkpoint is not there, or
            if they do not belong together.
    """
    config = read_run_config(Path(run))
    _trusted(run, config, "model", trust)
    path = checkpoint_path(run, str(checkpoint))
    import_custom_modules(config.get("custom_modules") or [])
    parser = RoutedParser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    module = _made(parser, {"model": config["model"]}).model
    load_checkpoint(module, path)
    return module.eval()


def load_data(run: str | Path, *, trust: bool = False) -> LightningDataModule:
    """Build the run's data module; nothing is read yet.

    Args:
        run: The run folder.
        trust: Whether it may run code that its configuration names (`moe_adapt.runs.trust`).

    Raises:
        UserError: If the folder is not that of a run with data, or not trusted with what it names.
    """
    config = read_run_config(Path(run))
    if not config.get("data"):
        raise UserError(f"the configuration of {run} names no data.")
    _trusted(run, config, "data", trust)
    import_custom_modules(config.get("custom_modules") or [])
    parser = RoutedParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    return _made(parser, {"data": config["data"]}).data
