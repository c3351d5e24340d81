"""Export the folder of a run over a task stream: its learner as it stood after the last finished task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import moe_adapt.learners  # noqa: F401  the classes, for their bare names
from moe_adapt.backbones import Pretrained
from moe_adapt.errors import UserError
from moe_adapt.hub.card import About
from moe_adapt.hub.export import ExportReport
from moe_adapt.hub.folder import check_target
from moe_adapt.hub.published import save
from moe_adapt.learners import Learner
from moe_adapt.reading import read_json, read_yaml
from moe_adapt.runs.custom import import_custom_modules
from moe_adapt.runs.export import dataset_name
from moe_adapt.runs.folder import CONFIG_FILE
from moe_adapt.runs.parser import RoutedParser
from moe_adapt.runs.trust import check_trusted
from moe_adapt.training.stream.state import restore_learner

__all__ = ["export_stream_run", "is_stream_run", "load_stream_learner"]

#: What the Hub calls the tasks of our streams.
_TASKS = {
    "ImageStream": "image-classification",
    "InstructionStream": "text-generation",
    "TextStream": "text-classification",
}


def is_stream_run(run: str | Path) -> bool:
    """Return whether a folder is that of a run over a task stream."""
    return "learner" in _config(Path(run))


def export_stream_run(
    run: str | Path, to: str | Path, *, license: str | None = None, overwrite: bool = False
) -> ExportReport:
    """Write the learner of a run folder.

    Args:
        run: Folder that ``moe-adapt stream`` wrote.
        to: Folder to write.
        license: Identifier of the learner's licence, for the card.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If the run cannot be rebuilt, has no finished task, or `to` is in use.
    """
    check_target(Path(to), overwrite)
    run = Path(run)
    learner = load_stream_learner(run)
    result = _result(run)
    stream = _config(run).get("stream") or {}
    about = About(
        manifest=result.get("manifest") or {},
        task=_TASKS.get(str(stream.get("class_path")).rpartition(".")[2]),
        dataset=dataset_name(stream),
        stream=result,
        license=license,
    )
    return save(learner, to, about=about, overwrite=overwrite)


def load_stream_learner(run: str | Path, *, trust: bool = False) -> Learner:
    """Build the run's learner and bring it to where the run's checkpoint left off, in evaluation mode.

    Args:
        run: Folder that ``moe-adapt stream`` wrote.
        trust: Whether it may run code that its configuration names (`moe_adapt.runs.trust`).

    Raises:
        UserError: If the folder is not trusted with what it names, is not that of such a run, or has no
            finished task.
    """
    run = Path(run)
    config = _config(run)
    if "learner" not in config:
        raise UserError(f"{run} is not the folder of a run over a stream: {CONFIG_FILE} names no learner.")
    used: dict[str, Any] = {
        key: config[key] for key in ("backbone", "learner", "custom_modules") if key in config
    }
    check_trusted(run / CONFIG_FILE, used, trust)
    import_custom_modules(config.get("custom_modules") or [])
    parser = RoutedParser()
    parser.add_subclass_arguments(Pretrained, "backbone", required=True)
    parser.add_subclass_arguments(Learner, "learner", required=True)
    parser.link_arguments("backbone", "learner.init_args.backbone", apply_on="instantiate")
    chosen = {key: config[key] for key in ("backbone", "learner")}
    learner: Learner = parser.instantiate_classes(parser.parse_object(chosen)).learner
    restore_learner(run, learner)
    return learner.eval()


def _config(run: Path) -> dict[str, Any]:
    path = run / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{run} is not the folder of a run: it has no {CONFIG_FILE}.")
    config = read_yaml(path, "the configuration of a run")
    return config if isinstance(config, dict) else {}


def _result(run: Path) -> Mapping[str, Any]:
    """Return what a finished run found; nothing of one that was interrupted."""
    path = run / "result.json"
    found = read_json(path, "the result of a run") if path.is_file() else {}
    return found if found.get("status") == "finished" else {}
