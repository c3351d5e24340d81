"""Run a recipe with several methods and seeds through the command line, and tabulate the test metrics.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to PREPARED clinc150 minilm
    python benchmarks/recipes/compare.py clinc150 --prepared PREPARED --seeds 0 1 2
    python benchmarks/recipes/compare.py --render

Every run is ``moe-adapt fit`` and then ``moe-adapt test`` with the YAML files beside this script. A run that
has finished is not repeated, so an interrupted comparison goes on where it stopped. The result is
``benchmarks/results/<recipe>.json``, and ``benchmarks/results/README.md`` is rendered from all of them.
"""

import argparse
import csv
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_table import export_table
from rendering import made_by, mean_and_spread
from routed_table import language_table, routed_table
from summary_table import summary_table

from moe_adapt.cli import main as moe_adapt
from moe_adapt.manifest import collect

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        title: Heading of the table.
        methods: Label and YAML file of each method.
        metrics: Test metrics to report.
        untrained: Whether to test the base model before training, too.
    """

    title: str
    methods: dict[str, str]
    metrics: list[str] = field(default_factory=lambda: ["test/acc", "test/f1"])
    untrained: bool = False


MINILM = {
    "DynMoLE": "minilm_dynmole",
    "LoRA, equal parameters": "minilm_lora",
    "frozen base, linear head": "probe",
}
VIT = {"DynMoLE": "vit_dynmole", "LoRA, equal parameters": "vit_lora", "frozen base, linear head": "probe"}
SMOLLM2 = {"DynMoLE": "smollm2_dynmole", "LoRA, equal parameters": "smollm2_lora"}

COMPARISONS = {
    "clinc150": Comparison("MiniLM on CLINC150, 10 texts per intent", MINILM),
    "banking77": Comparison("MiniLM on Banking77, 10 texts per intent", MINILM),
    "arc_easy": Comparison(
        "SmolLM2-135M on ARC-Easy, first 500 test questions",
        SMOLLM2,
        metrics=["test/acc", "test/acc_norm"],
        untrained=True,
    ),
    "tiny_imagenet": Comparison(
        "ViT-S/14 (DINOv2-S fine-tuned for saliency) on 20 Tiny-ImageNet classes", VIT
    ),
}


def test_metrics(folder: Path, names: list[str]) -> dict[str, float]:
    """Return the metrics that ``moe-adapt test`` wrote."""
    with (folder / "test" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: float(next(row[name] for row in reversed(rows) if row.get(name))) for name in names}


def call(*arguments: str) -> None:
    """Run the command line; stop with its exit code if it fails."""
    code = moe_adapt(list(arguments))
    if code:
        sys.exit(code)


def run(name: str, method: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train and test one method with one seed, unless that was done before."""
    folder = runs / name / f"{method}-{seed}"
    manifest = folder / "manifest.json"
    configs = [HERE / f"{name}.yaml", HERE / "methods" / f"{method}.yaml"]
    flags = [f"--config={path}" for path in configs] + [f"--seed_everything={seed}", f"--data.seed={seed}"]
    if not manifest.is_file() or json.loads(manifest.read_text())["status"] != "finished":
        call("fit", "--config=base", *flags, f"--out={folder}", "--overwrite")
    if not (folder / "test" / "metrics.csv").is_file():
        call("test", f"--config={folder / 'moe_adapt_config.yaml'}", f"--out={folder}", "--ckpt_path=last")
    facts = json.loads(manifest.read_text())
    return {
        "method": method,
        "seed": seed,
        "metrics": test_metrics(folder, COMPARISONS[name].metrics),
        "trainable_parameters": facts["trainable_parameters"],
        "steps": facts["steps"],
        "wall_seconds": facts["wall_seconds"],
        "peak_memory_mb": facts["peak_memory_mb"],
    }


def run_untrained(name: str, runs: Path) -> dict[str, Any]:
    """Test the base model as it is."""
    folder = runs / name / "untrained"
    if not (folder / "test" / "metrics.csv").is_file():
        call("test", "--config=base", f"--config={HERE / f'{name}.yaml'}", f"--out={folder}")
    metrics = test_metrics(folder, COMPARISONS[name].metrics)
    return {"method": "untrained", "seed": None, "metrics": metrics, "trainable_parameters": 0}


def table(name: str, report: dict[str, Any]) -> str:
    """Return the Markdown table of a comparison."""
    comparison = COMPARISONS[name]
    labels = {method: label for label, method in comparison.methods.items()} | {
        "untrained": "before training"
    }
    seeds = len({row["seed"] for row in report["rows"]} - {None})
    heads = [
        "method",
        "trainable parameters",
        *(metric.removeprefix("test/") for metric in comparison.metrics),
    ]
    lines = [
        f"## {comparison.title}",
        "",
        f"{seeds} seeds, mean ± standard deviation." if seeds > 1 else "1 seed, so no spread is known.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for method in labels:
        rows = [row for row in report["rows"] if row["method"] == method]
        if rows:
            cells = [labels[method], f"{rows[0]['trainable_parameters']:,}"]
            for metric in comparison.metrics:
                cells.append(mean_and_spread([row["metrics"][metric] for row in rows]))
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", made_by(report["manifest"])]
    return "\n".join(lines)


def step_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of a result of ``routed_step.py``."""
    settings, facts = report["settings"], report["manifest"]
    one_layer = settings.get("model") == "layer"
    layers, threads, compiled = settings["layers"], settings["threads"], settings.get("compile")
    depth = "" if layers == 30 else f", {layers} blocks of its 30"
    what = "one linear layer, 576 to 1536" if one_layer else f"a Llama of SmolLM2-135M's shape{depth}"
    title = " of one layer" if one_layer else f" on {threads} threads" if threads > 1 else ""
    title += ", compiled" if compiled else f", {layers} blocks" if depth else ""
    lines = [
        f"## Time of a training step{title}",
        "",
        f"Forward, backward and AdamW on {what}, all linear layers adapted, "
        f"E={settings['experts']}, r={settings['rank']}, {settings['tokens']} tokens, fp32, "
        f"{threads} CPU thread(s), {settings.get('clock', 'processor')} time. The variants take turns in one "
        f"run; the ratio is the median over {settings['rounds']} rounds.",
        "",
        "| variant | ratio to plain LoRA of rank E r | middle half of the rounds |",
        "|---|---|---|",
    ]
    for name, row in report["results"].items():
        low, high = row["ratio_quartiles"]
        against = " (ratio to all experts)" if name.startswith("inference") else ""
        against += " (ratio to plain LoRA, compiled)" if name.endswith(", compiled") else ""
        lines.append(f"| {name}{against} | {row['ratio_median']:.2f} | {low:.2f} to {high:.2f} |")
    lines += ["", f"`{facts['command']}`, torch {facts['versions']['torch']}."]
    return "\n".join(lines)


def kernel_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of ``kernels_cpu.json``."""
    ways = ["expert_loop", "einsum", "grouped_mm", "stacked_autograd", "stacked", "grouped"]
    lines = [
        "## Time of the operator on the CPU",
        "",
        "Forward and backward of the mixture alone, processor time of one thread divided by that of one LoRA "
        f"of rank E r without a router; median over {report['settings']['rounds']} rounds. "
        "`stacked` and `grouped` are ours, one of which the dispatcher chooses. "
        f"`{report['manifest']['command']}`.",
        "",
        f"| N, d, o | E, r, K | dtype | {' | '.join(ways)} | chosen |",
        "|---" * (len(ways) + 4) + "|",
    ]
    for row in report["rows"]:
        shape, seconds = row["problem"], row["step_seconds"]
        cells = [f"{seconds[w] / seconds['plain_lora']:.2f}" if w in seconds else "" for w in ways]
        widths = f"{shape['tokens']}, {shape['in_features']}, {shape['out_features']}"
        experts = f"{shape['experts']}, {shape['rank']}, {shape['slots']}"
        lines.append(f"| {widths} | {experts} | {shape['dtype']} | {' | '.join(cells)} | {row['chosen']} |")
    return "\n".join(lines)


def render() -> None:
    """Write ``benchmarks/results/README.md`` from the JSON files."""
    found = [name for name in COMPARISONS if (RESULTS / f"{name}.json").is_file()]
    reports = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in found}
    others = {
        "routed_step": step_table,
        "routed_step_six": step_table,
        "routed_step_compiled": step_table,
        "routed_step_threads": step_table,
        "routed_layer": step_table,
        "routed_lora": routed_table,
        "routed_language": language_table,
        "export_gap": export_table,
        "kernels_cpu": kernel_table,
    }
    measured = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in others
        if (RESULTS / f"{name}.json").is_file()
    }
    head = (
        "# Results\n\nRendered by `python benchmarks/recipes/compare.py --render` from the JSON files here."
    )
    titles = {name: comparison.title for name, comparison in COMPARISONS.items()}
    tables = [f"## In short\n\n{summary_table(reports, titles, measured.get('routed_step'))}"]
    tables += [table(name, report) for name, report in reports.items()]
    tables += [others[name](report) for name, report in measured.items()]
    (RESULTS / "README.md").write_text("\n\n".join([head, *tables]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", choices=list(COMPARISONS), help="which comparison to run")
    parser.add_argument("--prepared", type=Path, help="the folder that prepare.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds, one run each")
    parser.add_argument("--methods", nargs="+", help="YAML names of the methods to run (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="folder of the runs")
    parser.add_argument("--render", action="store_true", help="only write the tables from the JSON files")
    options = parser.parse_args()
    if options.render:
        render()
        return
    if options.recipe is None or options.prepared is None:
        parser.error("give a recipe and the folder of prepared data")
    facts, runs = collect(), options.runs.resolve()
    os.chdir(options.prepared)  # the recipes name their data and models relative to it
    comparison = COMPARISONS[options.recipe]
    rows = [run_untrained(options.recipe, runs)] if comparison.untrained else []
    for seed in options.seeds:
        for method in options.methods or comparison.methods.values():
            rows.append(run(options.recipe, method, seed, runs))
    RESULTS.mkdir(exist_ok=True)
    seeds = " ".join(str(seed) for seed in options.seeds)
    facts["command"] = f"compare.py {options.recipe} --prepared PREPARED --seeds {seeds}"
    report = {"manifest": facts, "rows": rows}
    (RESULTS / f"{options.recipe}.json").write_text(json.dumps(report, indent=2) + "\n")
    render()


if __name__ == "__main__":
    main()
