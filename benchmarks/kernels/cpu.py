"""Time of the operator on the CPU: ours against the same mixture as others write it, and against plain LoRA.

All ways take turns within one run. Times are processor time of one thread, medians over the rounds, of the
mixture alone (the frozen layer's own product is not in them). Every time is divided by that of one LoRA of
rank `E r` without a router.

    python benchmarks/kernels/cpu.py --out benchmarks/results/kernels_cpu.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rivals import RIVALS, register_rivals

from moe_adapt.kernels.dispatch import choose
from moe_adapt.kernels.problem import Problem
from moe_adapt.kernels.tune import measure, with_implementation
from moe_adapt.manifest import collect

OURS = ("stacked", "grouped", "auto")
F32, BF16 = torch.float32, torch.bfloat16


def problem(n: int, d: int, o: int, r: int, e: int, k: int, dtype: torch.dtype) -> Problem:
    return Problem(n, d, o, e, r, k, dtype, "cpu", True)


#: Long sequences at width 768, then small ones.
GRID = [
    *(problem(2048, 768, 768, r, e, k, F32) for r, e, k in ((8, 8, 1), (8, 8, 2), (8, 8, 4), (8, 16, 2))),
    *(problem(2048, 768, 768, r, e, k, F32) for r, e, k in ((16, 8, 2), (8, 32, 2))),
    *(problem(2048, 768, 768, r, e, k, BF16) for r, e, k in ((8, 8, 2), (8, 16, 2), (8, 32, 2))),
    *(problem(2048, 768, 768, r, e, k, BF16) for r, e, k in ((16, 16, 2), (8, 64, 2))),
    problem(16, 768, 768, 8, 8, 2, F32),
    problem(128, 768, 768, 8, 8, 2, F32),
    problem(128, 768, 768, 8, 64, 2, F32),
    problem(256, 64, 64, 4, 4, 2, F32),
    problem(512, 576, 1536, 8, 8, 2, F32),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds per problem")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    register_rivals()
    rows: list[dict[str, Any]] = []
    for case in track(GRID, description="problems"):
        # The outputs of all experts of a large problem would fill the memory.
        names = [name for name in RIVALS if name != "einsum" or case.tokens * case.experts <= 16384]
        timings = measure(case, {name: with_implementation(name) for name in (*names, *OURS)}, args.rounds)
        best = min(timings[name][1] for name in ("stacked", "grouped", "expert_loop"))
        shape = case._asdict() | {"dtype": str(case.dtype).removeprefix("torch.")}
        rows.append(
            {
                "problem": shape,
                "chosen": choose(case),
                "forward_seconds": {name: timing[0] for name, timing in timings.items()},
                "step_seconds": {name: timing[1] for name, timing in timings.items()},
                "chosen_over_best": timings[choose(case)][1] / best,
            }
        )
    for row in rows:
        yardstick = row["step_seconds"]["plain_lora"]
        ratios = ", ".join(f"{name} {value / yardstick:.2f}" for name, value in row["step_seconds"].items())
        shape = " ".join(
            f"{key}={row['problem'][key]}" for key in ("tokens", "experts", "rank", "slots", "dtype")
        )
        Console().print(
            f"{shape}: {ratios}; chosen {row['chosen']} ({row['chosen_over_best']:.2f} of the best)"
        )
    if args.out:
        manifest = collect() | {"command": "kernels/cpu.py --out FILE", "cpu_threads": 1}
        report = {"manifest": manifest, "settings": {"rounds": args.rounds}, "rows": rows}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
