"""What a routed adapter loses when it is exported as one ordinary LoRA, measured on the test rows of its run.

Gates are averaged over training rows; every rank is one export. Run it where the run's data and model were
named from:

    python benchmarks/export_gap.py --runs NAME=FOLDER ... --out benchmarks/results/export_gap.json
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from moe_adapt.manifest import collect
from moe_adapt.runs.export import export_run


def measure(run: Path, ranks: list[int], batches: int) -> list[dict[str, Any]]:
    """Return the gap of the merged form, exact in rank and cut to each of `ranks`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in (None, *ranks):
            report = export_run(
                run,
                Path(folder) / f"rank_{rank}",
                form="merged",
                checkpoint="last",
                gap="test",
                batches=batches,
                max_rank=rank,
            )
            record = dict(report.record)
            spread = [value for site in record["gate_std"].values() for value in site]
            rows.append(
                {
                    "rank": record["rank"],
                    "largest_error": record["largest_error"],
                    "mean_gate_std": sum(spread) / len(spread),
                    "gap": record["gap"],
                }
            )
            print(report, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER", help="runs to export")
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 4], help="ranks to cut to")
    parser.add_argument("--batches", type=int, default=200, help="most batches of training and of test rows")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    runs = dict(word.split("=", 1) for word in options.runs)
    rows = {name: measure(Path(folder), options.ranks, options.batches) for name, folder in runs.items()}
    facts = collect()
    names = " ".join(f"{name}=RUN" for name in runs)
    facts["command"] = f"export_gap.py --runs {names} --batches {options.batches} --out export_gap.json"
    options.out.write_text(json.dumps({"manifest": facts, "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
