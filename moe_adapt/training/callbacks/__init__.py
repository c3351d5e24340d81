"""Callbacks of a run: its folder, its checkpoints, its manifest, its progress, its routing."""

from moe_adapt.training.callbacks.adapter_report import AdapterReport
from moe_adapt.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from moe_adapt.training.callbacks.first_example import FirstExample
from moe_adapt.training.callbacks.head_start import HeadStart
from moe_adapt.training.callbacks.manifest import ManifestCallback
from moe_adapt.training.callbacks.output_folder import OutputFolderGuard, claim_folder
from moe_adapt.training.callbacks.preview import GenerationPreview
from moe_adapt.training.callbacks.progress import PlainProgress, progress_bar
from moe_adapt.training.callbacks.routing_monitor import RoutingMonitor

__all__ = [
    "AdapterReport",
    "BestCheckpoint",
    "FirstExample",
    "GenerationPreview",
    "HeadStart",
    "LastCheckpoint",
    "ManifestCallback",
    "OutputFolderGuard",
    "PlainProgress",
    "RoutingMonitor",
    "claim_folder",
    "progress_bar",
]
