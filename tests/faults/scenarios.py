"""The commands that `tests.faults.killing` kills, and what must hold when they were run again."""

import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from moe_adapt.errors import UserError
from moe_adapt.hub.composition.folder import read_folder
from moe_adapt.hub.load import check_adapter_folder, read_tensors
from moe_adapt.hub.pool import AdapterPool
from moe_adapt.reading import read_json
from moe_adapt.training.checkpoint import read_checkpoint
from tests.faults import killing
from tests.faults.killing import Scenario
from tests.training.tiny import tiny_bert

ROUTED = ["--config", "base", "--config", "task/sequence_classification", "--config", "routed_lora/top_k"]


def rows(folder: Path) -> None:
    lines = [json.dumps({"text": f"{'ab'[i % 2]} {i}", "label": "ab"[i % 2]}) for i in range(16)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def prepare_fit(root: Path) -> None:
    import moe_adapt.cli.fit  # noqa: F401  what every fork has then

    rows(root)
    tiny_bert(root / "bert")


def fit_words(root: Path, folder: Path) -> list[str]:
    return [
        "fit",
        *ROUTED,
        *("--model.backbone", str(root / "bert"), "--data.train", str(root / "rows.jsonl")),
        *("--data.validation", str(root / "rows.jsonl"), "--data.max_length", "32", "--data.batch_size", "8"),
        *("--model.tuner.target_modules", "[query]", "--model.lr", "0.05", "--trainer.max_epochs", "3"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--trainer.log_every_n_steps", "1", "--out", str(folder)),
    ]


def fit_again(root: Path, folder: Path) -> list[str]:
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return [*fit_words(root, folder), "--resume"]
    return [*fit_words(root, folder), "--overwrite"]


def scores(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    state = next(state for state in best["callbacks"].values() if state.get("monitor"))
    return float(state["best_model_score"]), best["state_dict"]


def fit_faults(folder: Path, whole: Path) -> list[str]:
    found = []
    try:
        read_checkpoint(folder / "checkpoints" / "last.ckpt")
        manifest = read_json(folder / "manifest.json")
        (score, tensors), (expected, others) = scores(folder), scores(whole)
    except UserError as error:
        return [f"unreadable: {error}"]
    if score != expected or any(not torch.equal(tensors[name], others[name]) for name in others):
        found.append(f"wrong best: {score} instead of {expected}")
    if manifest["status"] != "finished" or not manifest["metrics"]:
        found.append(f"lost: the manifest says {manifest['status']} with {len(manifest['metrics'])} metrics")
    lines = [len((run / "metrics.csv").read_text().splitlines()) for run in (folder, whole)]
    if lines[0] != lines[1]:
        found.append(f"lost: metrics.csv has {lines[0]} lines instead of {lines[1]}")
    left = [path.name for path in folder.rglob("*.tmp")]
    return found + ([f"left: {left}"] if len(left) > 2 else [])


TOYS = """
from moe_adapt.checks.toys import ToyEncoder, gaussian_stream
from moe_adapt.learners import FineTuning
from moe_adapt.streams import TaskStream


class KilledEncoder(ToyEncoder):
    pass


class KilledStream(TaskStream):
    def __init__(self, tasks: int = 3):
        self.__dict__.update(vars(gaussian_stream(tasks=tasks)))
"""


def prepare_stream(root: Path) -> None:
    import moe_adapt.cli.stream  # noqa: F401

    (root / "killed_toys.py").write_text(TOYS)


def stream_words(root: Path, folder: Path) -> list[str]:
    return [
        *("stream", "--custom_modules", str(root / "killed_toys.py"), "--backbone", "KilledEncoder"),
        *(
            "--stream",
            "KilledStream",
            "--learner",
            "FineTuning",
            "--learner.epochs",
            "1",
            "--out",
            str(folder),
        ),
    ]


def stream_again(root: Path, folder: Path) -> list[str]:
    how = "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"
    return [*stream_words(root, folder), how]


def stream_faults(folder: Path, whole: Path) -> list[str]:
    try:
        read_checkpoint(folder / "last.ckpt")
        mine, other = (read_json(run / "result.json") for run in (folder, whole))
    except UserError as error:
        return [f"unreadable: {error}"]
    same = mine["status"] == "finished" and mine["accuracy_matrix"] == other["accuracy_matrix"]
    steps = [len(list((run / "predictions").glob("*.npy"))) for run in (folder, whole)]
    return [] if same and steps[0] == steps[1] else [f"lost: {mine['status']}, predictions {steps}"]


def prepare_export(root: Path) -> None:
    import moe_adapt.cli.export
    from moe_adapt.cli import main

    prepare_fit(root)
    assert main([*fit_words(root, root / "run"), "--overwrite"]) == 0
    moe_adapt.cli.export  # noqa: B018


def export_words(root: Path, folder: Path) -> list[str]:
    return ["export", str(root / "run"), "--to", str(folder / "adapter"), "--overwrite"]


def export_faults(folder: Path, whole: Path) -> list[str]:
    try:
        check_adapter_folder(folder / "adapter")
        tensors, others = read_tensors(folder / "adapter"), read_tensors(whole / "adapter")
    except UserError as error:
        return [f"unreadable: {error}"]
    left = [path.name for path in folder.iterdir() if path.name != "adapter"]
    different = [name for name in others if not torch.equal(tensors[name], others[name])]
    return ([f"lost: {different}"] if different else []) + ([f"left: {left}"] if left else [])


def prepare_pool(root: Path) -> None:
    import moe_adapt.cli.pool  # noqa: F401
    from moe_adapt.hub.pool.features import Embedder

    tiny_bert(root / "bert")
    (root / "texts.txt").write_text("one\ntwo\n")
    Embedder(str(root / "bert"), None)(["warm"])


def pool_words(root: Path, folder: Path, uid: str = "new") -> list[str]:
    if not (folder / "pool" / "pool.json").is_file():
        pool = AdapterPool(str(root / "bert"))
        pool.add("old", "org/old", torch.eye(2, 32))
        pool.save(folder / "pool")
    return ["pool", "add", str(folder / "pool"), f"org/{uid}", "--examples", str(root / "texts.txt")]


def pool_faults(folder: Path, whole: Path) -> list[str]:
    try:
        members = set(AdapterPool.load(folder / "pool").members)
    except UserError as error:
        return [f"unreadable: {error}"]
    left = [path.name for path in folder.iterdir() if path.name != "pool"]
    wrong = [] if members == {"old", "new"} else [f"lost: the pool has {members}"]
    return wrong + ([f"left: {left}"] if left else [])


RECIPE = """
title: killed
window: 100
seeds: [1, 2]
streams: [{name: SEA_a, rows: 400}]
methods: [majority, no_change]
"""


def prepare_drift(root: Path) -> None:
    import moe_adapt.cli.drift
    import moe_adapt.drift.comparison.compare  # noqa: F401

    (root / "recipe.yaml").write_text(RECIPE)


def drift_words(root: Path, folder: Path) -> list[str]:
    return ["drift", "--config", str(root / "recipe.yaml"), "--out", str(folder)]


def drift_faults(folder: Path, whole: Path) -> list[str]:
    found = []
    for path in whole.rglob("*.json"):
        other = folder / path.relative_to(whole)
        try:
            mine, expected = read_json(other), read_json(path)
        except UserError as error:
            found.append(f"unreadable: {error}")
            continue
        if mine.get("kappa_m") != expected.get("kappa_m") or mine.keys() != expected.keys():
            found.append(f"lost: {other.name} differs")
    return found


SWEEP = """
command: stream
metric: final_accuracy
arguments: [--custom_modules, TOYS, --backbone, KilledEncoder, --stream, KilledStream]
methods: {tuned: [--learner, FineTuning, --learner.epochs, "1"]}
seeds: [0, 1]
"""


class InlineRay:
    """In the place of Ray: a trial runs when it is asked for, in a fork that nothing kills."""

    exceptions = SimpleNamespace(RayError=RuntimeError)
    __spec__ = ModuleSpec("ray", None)

    def init(self, **options: Any) -> None:
        """Start nothing."""

    def shutdown(self) -> None:
        """Stop nothing."""

    def remote(self, **options: Any) -> Any:
        return lambda function: SimpleNamespace(remote=function)

    def wait(self, pending: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return pending[:1], pending[1:]

    def get(self, outcome: Any) -> Any:
        return outcome


def run_in_fork(command: list[str], stdout: Any, **options: Any) -> SimpleNamespace:
    from moe_adapt.cli import main

    def work() -> int:
        killing.COUNT[0] = -(10**9)
        return main(command[3:])

    return SimpleNamespace(returncode=killing.forked(work, Path(stdout.name)))


def prepare_sweep(root: Path) -> None:
    import moe_adapt.cli.sweep  # noqa: F401
    from moe_adapt.training.sweep import report, run

    prepare_stream(root)
    report.pyplot_figure(1.0, 1.0, [1.0])
    sys.modules["ray"] = InlineRay()  # type: ignore[assignment]
    run.subprocess = SimpleNamespace(run=run_in_fork, STDOUT=None)  # type: ignore[assignment]
    (root / "sweep.yaml").write_text(SWEEP.replace("TOYS", str(root / "killed_toys.py")))


def sweep_words(root: Path, folder: Path) -> list[str]:
    return ["sweep", str(root / "sweep.yaml"), "--out", str(folder)]


def sweep_faults(folder: Path, whole: Path) -> list[str]:
    try:
        mine, other = (read_json(run / "results.json")["trials"] for run in (folder, whole))
    except UserError as error:
        return [f"unreadable: {error}"]
    told = [[(row["status"] != "failed", row["metrics"]) for row in rows] for rows in (mine, other)]
    tables = [(run / "results.md").read_text() for run in (folder, whole)]
    same = told[0] == told[1] and tables[0] == tables[1] and (folder / "results.png").is_file()
    left = [path.name for path in folder.rglob("*.tmp")]
    return ([] if same else [f"lost: {told[0]}"]) + ([f"left: {left}"] if left else [])


def prepare_compose(root: Path) -> None:
    import moe_adapt.cli.compose
    import moe_adapt.hub.composition  # noqa: F401
    from tests.hub.composition.kitchen import WORDS, llama, llama_adapters, tokenizer

    llama().save_pretrained(root / "base")
    tokenizer().save_pretrained(root / "base")
    llama_adapters(root)
    for uid, texts in WORDS.items():
        (root / f"{uid}.txt").write_text("\n".join(texts))


def compose_words(root: Path, folder: Path) -> list[str]:
    return [
        *("compose", str(root / "bank"), str(root / "food"), f"--backbone={root / 'base'}", "--layer=1"),
        *(f"--to={folder / 'all'}", "--overwrite"),
        *("--examples", f"bank={root / 'bank.txt'}", f"food={root / 'food.txt'}"),
    ]


def composed(root: Path, folder: Path) -> None:
    """Give an attempt a composed adapter of its own, made once."""
    from moe_adapt.cli import main

    if not (root / "composed" / "all").is_dir():
        killing.forked(lambda: main(compose_words(root, root / "composed")), root / "compose.txt")
    if not (folder / "all").is_dir():
        shutil.copytree(root / "composed", folder, dirs_exist_ok=True)


def add_words(root: Path, folder: Path) -> list[str]:
    composed(root, folder)
    return ["compose", str(folder / "all"), "--add", str(root / "news"), "--examples", str(root / "news.txt")]


def remove_words(root: Path, folder: Path) -> list[str]:
    composed(root, folder)
    return ["compose", str(folder / "all"), "--remove", "food"]


def compose_faults(folder: Path, whole: Path) -> list[str]:
    try:
        (config, tensors, _, record), (_, others, _, expected) = (
            read_folder(f / "all") for f in (folder, whole)
        )
        check_adapter_folder(folder / "all")
    except UserError as error:
        return [f"unreadable: {error}"]
    left = [path.name for path in folder.iterdir() if path.name != "all"]
    same = record.experts.keys() == expected.experts.keys() and tensors.keys() == others.keys()
    same = same and all(torch.equal(tensors[name], others[name]) for name in others)
    return ([] if same and config else [f"lost: {list(record.experts)}"]) + (
        [f"left: {left}"] if left else []
    )


def still_composed(folder: Path) -> list[str]:
    try:
        read_folder(folder / "all")
    except UserError as error:
        return [f"unreadable after the kill: {error}"]
    return []


def still_a_pool(folder: Path) -> list[str]:
    try:
        members = set(AdapterPool.load(folder / "pool").members)
    except UserError as error:
        return [f"unreadable after the kill: {error}"]
    return [] if "old" in members else ["lost: the old adapter"]


SCENARIOS = {
    "fit": Scenario(prepare_fit, fit_words, fit_again, fit_faults),
    "stream": Scenario(prepare_stream, stream_words, stream_again, stream_faults),
    "export": Scenario(prepare_export, export_words, export_words, export_faults),
    "drift": Scenario(prepare_drift, drift_words, drift_words, drift_faults),
    "pool": Scenario(prepare_pool, pool_words, pool_words, pool_faults, still_a_pool),
    "sweep": Scenario(prepare_sweep, sweep_words, sweep_words, sweep_faults),
    "compose": Scenario(prepare_compose, compose_words, compose_words, compose_faults),
    "compose_add": Scenario(prepare_compose, add_words, add_words, compose_faults, still_composed),
    "compose_remove": Scenario(prepare_compose, remove_words, remove_words, compose_faults, still_composed),
}
