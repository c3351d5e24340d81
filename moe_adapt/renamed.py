"""Modules that moved: an import under the old name gives the same module, with a DeprecationWarning.

Run folders, adapters' cards and users' code name modules of earlier releases, such as
``moe_adapt.training.data.TextClassificationData``. A finder maps each old name to the module that it became,
so that there is one copy of every class under either name.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install", "new_name"]

#: Old name -> new name, both without ``moe_adapt.``; a package's name stands for all that was in it.
MOVED = {
    "learners.driftmoe": "drift.driftmoe",
    "learners.hoeffding": "drift.hoeffding",
    "learners.hoeffding.pool": "drift.hoeffding.forest",
    "streams.drift": "drift.streams",
    "training.drift": "drift.comparison",
    "training.drift.comparison": "drift.comparison.compare",
    "evaluation.prequential": "drift.metrics",
    "evaluation.test_then_train": "drift.prequential",
    "evaluation.ranks": "drift.ranks",
    "training.cli": "cli",
    "training.cli.config_names": "runs.config_names",
    "training.cli.custom": "runs.custom",
    "training.cli.messages": "runs.messages",
    "training.cli.parser": "runs.parser",
    "training.cli.run_folder": "runs.folder",
    "training.cli.runs": "runs.rebuild",
    "hub.run": "runs.export",
    "hub.stream_run": "runs.stream_export",
    "hub.warm_start": "runs.warm_start",
    "evaluation.trace_file": "evaluation.trace.file",
    "evaluation.trace_metrics": "evaluation.trace.metrics",
    "evaluation.trace_compare": "evaluation.trace.compare",
    "evaluation.trace_lineage": "evaluation.trace.lineage",
    "evaluation.trace_report": "evaluation.trace.report",
    "tuner.pool": "tuner.edit",
    "tuner.pool_operation": "tuner.edit_operation",
    "hub.low_rank": "hub.mixture",
    "hub.learner_parts": "learners.parts",
    "learners.publishing": "hub.publishable",
    "training.data": "training.datamodules",
    "training.manifest": "manifest",
    "updates": "optim",
    "updates.processes": "processes",
}
_ROOT = "moe_adapt."


def new_name(name: str) -> str | None:
    """Return the full name that a module has now; None if it did not move.

    >>> new_name("moe_adapt.training.data.images")
    'moe_adapt.training.datamodules.images'
    """
    old = name.removeprefix(_ROOT)
    rest = ""
    while old and name.startswith(_ROOT):
        if old in MOVED:
            return _ROOT + MOVED[old] + rest
        old, dot, last = old.rpartition(".")
        rest = dot + last + rest
    return None


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its old name and gives the one that it became."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        now = new_name(fullname)
        if now is None or importlib.util.find_spec(now) is None:
            return None
        return ModuleSpec(fullname, self, is_package=False)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        now = str(new_name(spec.name))
        warnings.warn(f"{spec.name} is now {now}.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None and spec.loader is self:
            module.__spec__ = spec.loader_state


def install() -> None:
    """Let old names be imported; calling it again changes nothing."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
