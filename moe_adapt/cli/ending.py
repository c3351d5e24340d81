"""How ``fit`` and ``test`` end: the result beside its baselines, where things are, what comes next."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from rich.console import Console
from rich.table import Table

from moe_adapt.evaluation.words import method_words, metric_words, routing_sentences
from moe_adapt.files import write_file
from moe_adapt.hub.load import file_hash
from moe_adapt.runs.export import TEST_FILE
from moe_adapt.runs.outcome import Outcome, examine, outcome_of, result_rows
from moe_adapt.runs.report import judge, write_report
from moe_adapt.training.callbacks import BestCheckpoint, HeadStart
from moe_adapt.training.callbacks.head_start import BASELINES
from moe_adapt.training.modules.base import AdaptedModule

__all__ = ["end_fit", "end_test", "keep_test", "run_name"]


def run_name(module: Any) -> str:
    """Return what a run is called in tables: its method, or that it has none."""
    config = getattr(module, "tuner_config", None)
    return "this run (head only)" if config is None else f"this run ({method_words(config.method)})"


def end_fit(trainer: Trainer, module: Any, data: Any, folder: Path, others: Mapping[str, float]) -> None:
    """Examine a finished run, write its report and print the ending.

    Args:
        trainer: The trainer, whose fit has ended.
        module: The trained module.
        data: The data module.
        folder: The run's folder.
        others: Values of further baselines that were trained beside it, by their name in tables.
    """
    dry: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
    if dry or not trainer.is_global_zero or not isinstance(module, AdaptedModule):
        return
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    outcome = outcome_of(folder, module, best, folder / "checkpoints" / "last.ckpt")
    outcome.baselines |= others
    if trainer.world_size == 1:
        examine(outcome, module, data)
    _keep(folder, outcome)
    name = run_name(module)
    report = write_report(folder, outcome, name)
    console = Console(highlight=False)
    if outcome.value is not None:
        heads = ["", metric_words(outcome.metric)]
        console.print(_table(heads, result_rows(outcome, name), outcome.higher_is_better))
    lines = [judge(outcome, name)]
    sentences = routing_sentences(outcome.routing)
    if sentences:
        lines.append("routing: " + "; ".join(sentences))
    lines += [f"run:        {folder}", f"checkpoint: {outcome.checkpoint}", f"report:     {report}", "next:"]
    lines += [f"  {command}" for command in _next(folder, module, data)]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _keep(folder: Path, outcome: Outcome) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["result"] = outcome.record()
    write_file(path, json.dumps(manifest, indent=2) + "\n")


def _next(folder: Path, module: Any, data: Any) -> list[str]:
    run = shlex.quote(str(folder))
    sources = getattr(data, "sources", {})
    if sources.get("test") is not None:
        first = f"moe-adapt test --config {run}/moe_adapt_config.yaml"
    elif module.answering.get("task") == "text-generation":
        first = f"moe-adapt chat {run}"
    else:
        first = f"moe-adapt predict {run} rows.jsonl --to answers.jsonl"
    return [first, f"moe-adapt export {run} --to adapters/{shlex.quote(folder.name)}"]


def end_test(trainer: Trainer, module: Any, metrics: Mapping[str, float], heading: str) -> None:
    """Print what was measured, four digits each, beside the baselines.

    Args:
        trainer: The trainer.
        module: The module.
        metrics: What the trainer returned.
        heading: Which rows these are.
    """
    if not trainer.is_global_zero:
        return
    console = Console(highlight=False)
    start = next((c for c in trainer.callbacks if isinstance(c, HeadStart)), None)  # type: ignore[attr-defined]
    baselines = {} if start is None else start.found.get("test/acc", {})
    if "test/acc" in metrics and baselines:
        rows: list[tuple[str, float | None]] = [(run_name(module), metrics["test/acc"])]
        rows += [(BASELINES[name], value) for name, value in baselines.items()]
        console.print(_table(["", f"accuracy on {heading}"], rows, True))
    for name, value in metrics.items():
        console.print(f"{name:<16}{value:.4f}", markup=False)


def keep_test(trainer: Trainer, folder: Path, checkpoint: str | None, metrics: Mapping[str, float]) -> None:
    """Leave what was measured in the run's folder, with the checkpoint's hash, for the card of an export.

    Args:
        trainer: The trainer.
        folder: The run's folder.
        checkpoint: What was measured; None for a model that was not trained.
        metrics: What the trainer returned.
    """
    if checkpoint is None or not trainer.is_global_zero or not (folder / "manifest.json").is_file():
        return
    path = Path(checkpoint)
    content = {"checkpoint": path.name, "sha256": file_hash(path), "metrics": dict(metrics)}
    write_file(folder / TEST_FILE, json.dumps(content, indent=1) + "\n")


def _table(heads: list[str], rows: list[tuple[str, float | None]], higher: bool) -> Table:
    table = Table(title_justify="left")
    table.add_column(heads[0])
    table.add_column(heads[1], justify="right")
    known = [value for _, value in rows if value is not None]
    top = (max if higher else min)(known) if len(known) > 1 else None
    for name, value in rows:
        said = "-" if value is None else f"{value:.4f}"
        table.add_row(name, f"[bold]{said}[/bold]" if value is not None and value == top else said)
    return table
