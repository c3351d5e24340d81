"""Small experiments on single mechanisms: what each part does where it claims to do something.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to PREPARED minilm vit_s14 omniglot
    python benchmarks/mechanisms/run.py --data $MOE_ADAPT_DATA --prepared PREPARED --runs RUNS
    python benchmarks/mechanisms/run.py --render

Each module named in `NAMES` has one or more experiments in `EXPERIMENTS`. An experiment runs with one seed in
a process of its own, and leaves one JSON file in RUNS; what is there is not run again. Results go to
``benchmarks/results/mechanisms.json``, and its tables to ``mechanisms.md`` beside it.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
NAMES = (
    "cache",
    "novelty",
    "offsets",
    "sites",
    "perturbed",
    "precision",
    "unlearning",
    "film_stream",
    "edit",
    "balance",
    "attacks",
    "rank_one",
    "reward",
)
COMMAND = "mechanisms/run.py {name} --data DATA --prepared PREPARED --runs RUNS"


def experiments() -> dict[str, Any]:
    """Return all experiments by name; they share parts of two other benchmarks."""
    for folder in (HERE, HERE.parent / "routed_lora", HERE.parent / "recipes"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    found: dict[str, Any] = {}
    for name in NAMES:
        found |= importlib.import_module(name).EXPERIMENTS
    return found


def collect_results(found: dict[str, Any], runs: Path, to: Path) -> None:
    """Put what is in `runs` beside what the file has; equal manifests are written once.

    Raises:
        SystemExit: If a cell was made with other settings than the experiment has now.
    """
    report = json.loads(to.read_text()) if to.is_file() else {"manifests": [], "experiments": {}}
    for name, experiment in found.items():
        own = report["experiments"].get(name, {"settings": experiment.settings, "rows": []})
        rows = {(row["variant"], row["seed"]): row for row in own["rows"]}
        for seed in experiment.seeds:
            path = runs / f"{name}-{seed}.json"
            if not path.is_file():
                continue
            cell = json.loads(path.read_text())
            if cell["settings"] != experiment.settings:
                raise SystemExit(f"{path.name} was made with {cell['settings']}; run it again.")
            if cell["manifest"] not in report["manifests"]:
                report["manifests"].append(cell["manifest"])
            place = report["manifests"].index(cell["manifest"])
            for variant, numbers in cell["found"].items():
                rows[variant, seed] = {"variant": variant, "seed": seed, "manifest": place, **numbers}
        if rows:
            report["experiments"][name] = {"settings": experiment.settings, "rows": list(rows.values())}
    to.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="which experiments; all if none is named")
    parser.add_argument("--data", type=Path, default=os.environ.get("MOE_ADAPT_DATA"), help="raw files")
    parser.add_argument("--prepared", type=Path, help="the folder that prepare.py wrote")
    parser.add_argument("--runs", type=Path, help="folder for one file per experiment and seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the seeds of the experiments")
    parser.add_argument("--collect", action="store_true", help="run nothing, gather what is there")
    parser.add_argument("--render", action="store_true", help="only write the tables")
    args = parser.parse_args()
    found = experiments()
    unknown = [name for name in args.names if name not in found]
    if unknown:
        parser.error(f"there is no experiment {unknown[0]!r}; there are {', '.join(found)}")
    from tables import render

    if not args.render:
        if args.runs is None or args.data is None or args.prepared is None:
            parser.error("give --data, --prepared and --runs")
        found = {name: found[name] for name in args.names or found}
        if not args.collect:
            run_all(found, args)
        collect_results(found, args.runs, RESULTS / "mechanisms.json")
        found = experiments()
    render(found, RESULTS)


def run_all(found: dict[str, Any], args: argparse.Namespace) -> None:
    """Run every experiment and seed that has no file yet."""
    from cells import run_cells

    args.backbone = args.prepared / "minilm"
    for name, experiment in found.items():
        own = argparse.Namespace(**{**vars(args), **experiment.settings})
        cells = [(name, seed) for seed in args.seeds or experiment.seeds]
        command = COMMAND.format(name=name)
        run_cells(cells, args.runs, measured, own, command, experiment.settings)


def measured(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return what an experiment finds with one seed."""
    return {"found": experiments()[name].measure(seed, args)}


if __name__ == "__main__":
    main()
