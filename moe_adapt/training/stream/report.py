"""The report of a stream run: one HTML file with tables and pictures."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.html import facts, page, table, verdict
from moe_adapt.evaluation.words import better, metric_words
from moe_adapt.reading import foreign, read_json
from moe_adapt.training.stream.files import write_file
from moe_adapt.training.stream.pictures import stream_pictures
from moe_adapt.training.stream.result import StreamResult

__all__ = ["read_bound", "write_report"]


def read_bound(folder: Path, fingerprint: str) -> tuple[str, AccuracyMatrix, dict[str, Any]]:
    """Return name, accuracies and metrics of a finished run, to be shown beside another one.

    Args:
        folder: Folder of the run.
        fingerprint: The stream that it must have run over.

    Raises:
        UserError: If there is no finished run, or it is of another stream.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"there is no result {path}; give the folder of a finished stream run.")
    with foreign(path, "the result of a stream run"):
        return _curve(folder, fingerprint, read_json(path, "the result of a stream run"))


def _curve(folder: Path, fingerprint: str, content: dict[str, Any]) -> Any:
    if content["status"] != "finished":
        raise UserError(f"the run in {folder} is not finished; go on with --resume first.")
    if content["manifest"]["stream"]["fingerprint"] != fingerprint:
        raise UserError(f"the run in {folder} is of another stream, so its curve does not compare.")
    name = f"{content['manifest']['learner']['learner']} ({folder.name})"
    return name, AccuracyMatrix(**content["accuracy_matrix"]), content["metrics"] | content["costs"]


def write_report(folder: Path, result: StreamResult, bounds: list[Path]) -> Path:
    """Write ``report.html`` into `folder`.

    Args:
        folder: Folder of the run.
        result: What the run found.
        bounds: Folders of finished runs over the same stream, to be shown beside it.

    Raises:
        UserError: If a bound cannot be shown beside it.
    """
    manifest = result.manifest
    own = f"{manifest['learner']['learner']} (this run)"
    others = [read_bound(bound, manifest["stream"]["fingerprint"]) for bound in bounds]
    metrics, costs = result.metrics(), result.costs()
    rows = {own: metrics | costs, **{name: values for name, _, values in others}}
    shown = [name for name in metrics if "standard_error" not in name]
    parts = [
        verdict(_judged(own, result, {name: values for name, _, values in others})),
        "<h2>Results</h2>",
        _beside(rows, shown),
        f"<p>Standard error of the final accuracy: {metrics['final_accuracy_standard_error']:.4f}. A "
        "difference below about three times that, on one seed, is none.</p>",
    ]
    names = [task["name"] for task in result.tasks]
    curves = {own: result.matrix, **{name: matrix for name, matrix, _ in others}}
    parts += stream_pictures(result.matrix, names, curves, result.routing)
    if result.attribution.get("tasks"):
        parts += _attribution(result.attribution)
    if result.verdicts:
        parts += _form(result)
    parts += [
        "<h2>Costs</h2>",
        _beside(rows, costs),
        "<h2>Tasks</h2>",
        _tasks(result),
        "<h2>Origin</h2>",
        _origin(result),
    ]
    title = f"{manifest['learner']['learner']} over {manifest['stream']['tasks']} tasks"
    text = page(title, parts)
    write_file(folder / "report.html", lambda file: file.write(text.encode()))
    return folder / "report.html"


def _beside(rows: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> str:
    """Return metrics as rows, runs as columns, the best of each row bold."""
    names = list(names)
    best = {place: which for place, name in enumerate(names) if (which := better(name)) is not None}
    lines = [[metric_words(name), *(values.get(name) for values in rows.values())] for name in names]
    return table(["", *rows], lines, best_of_rows=best)


def _judged(own: str, result: StreamResult, others: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence that the report begins with."""
    metrics = result.metrics()
    final, spread = metrics["final_accuracy"], metrics["final_accuracy_standard_error"]
    count = len(result.tasks)
    said = f"{own}: after {count} task{'s' * (count > 1)}, {final:.1%} of the rows of all tasks are right"
    known = {name: values["final_accuracy"] for name, values in others.items() if "final_accuracy" in values}
    if not known:
        return f"{said}. Runs given with --bounds would stand beside it."
    rival = max(known, key=lambda name: known[name])
    gap = final - known[rival]
    if abs(gap) < 3 * spread:
        return f"{said}, level with {rival} ({known[rival]:.1%})."
    word = "above" if gap > 0 else "below"
    return f"{said}, {100 * abs(gap):.1f} points {word} {rival} ({known[rival]:.1%})."


def _origin(result: StreamResult) -> str:
    manifest = result.manifest
    stream = {
        key: manifest["stream"].get(key) for key in ("scenario", "kind", "train", "test", "tasks", "classes")
    }
    features = manifest["features"]
    computed = "after every task" if features is None else "once, from samples without augmentation"
    origin = {
        **stream,
        "seed": manifest["seed"],
        "order of the classes": f"seed {manifest['stream'].get('order_seed')}",
        "tested": manifest["eval_at"],
        "features": computed,
        "task id at test time": "yes (an oracle)" if manifest["uses_task_id"] else "no",
        "command": manifest["command"],
    }
    settings = json.dumps(manifest["learner"], indent=1)
    return facts(origin) + f"<details><summary>learner</summary><pre>{escape(settings)}</pre></details>"


def _attribution(found: dict[str, Any]) -> list[str]:
    """Return the section on drift and what it cost."""
    heads = [key for key in found["tasks"][0] if key != "task"]
    rows = [[row.get(key) for key in heads] for row in found["tasks"]]
    rows.append(["mean", *(found["mean"].get(key) for key in heads[1:])])
    sentence = (
        "The pool grew and its old experts and router rows are as they were: what old tasks lost, they lost "
        "to routing that leaks to newer experts."
        if found["growing_pool"]
        else "drop_by_routers and drop_by_experts add up to what each task lost from its end to the end of "
        "the stream; they come from exchanging routers and experts of then and now."
    )
    return ["<h2>Drift, and what it cost</h2>", f"<p>{sentence}</p>", table(heads, rows)]


def _form(result: StreamResult) -> list[str]:
    """Return the section on what of the drops is the form of answers."""
    rows = result.format_artefacts()
    heads = list(rows[0]) if rows else []
    sentence = (
        "Accuracy right after each task and at the end, of what the model writes (exactly, and up to its "
        "form) and of the choice that it finds most likely. The artefact is the part of a drop that "
        "likelihood does not see: a lost format, not a lost task."
    )
    return [
        "<h2>Form of answers</h2>",
        f"<p>{sentence}</p>",
        table(heads, [[row[key] for key in heads] for row in rows]),
    ]


def _tasks(result: StreamResult) -> str:
    rows = result.table()
    heads = list(dict.fromkeys(key for row in rows for key in row if key not in ("learned", "task", "name")))
    lines = [[row["name"], *(row.get(key) for key in heads)] for row in rows]
    return table(["task", *(metric_words(head) for head in heads)], lines)
