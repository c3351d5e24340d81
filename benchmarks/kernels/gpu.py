"""The operator on a GPU: our Triton kernels beside how others write it, and beside what the memory allows.

In every cell all competitors take turns within one process; each turn is timed with CUDA events, after a
warm-up, on tensors whose state in the L2 cache is said (`--l2`). Reported are medians, their middle half, the
ratio to plain LoRA of rank `E r`, and the ratio to the floor: the larger of the arithmetic over `--flops` and
the bytes that no implementation can avoid over `--bandwidth`. The pass `decode` is a forward of a few tokens
that is captured in a CUDA graph first, which takes Python and launch cost out; what waits for the device
cannot be captured. Before anything is timed, each result is compared with that of the stacked form in fp32.
The last lines say of each target (`targets.py`) whether it is reached.

    python benchmarks/kernels/gpu.py --out benchmarks/results/kernels_gpu.json
    python benchmarks/kernels/gpu.py --grid full --out benchmarks/results/kernels_gpu.json
    python benchmarks/kernels/gpu.py --show benchmarks/results/kernels_gpu.json

`--device cpu` rehearses the script, with TRITON_INTERPRET=1 the kernels, too; its times say nothing about a
GPU.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rivals import RIVALS
from targets import shown
from torch import Tensor

from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.problem import Operands
from moe_adapt.manifest import collect

#: [N, E, o] of the materialised form may take this many bytes.
MATERIALISED = 8 * 2**30


def ours(impl: str) -> Callable[[Operands], Tensor]:
    def run(given: Operands) -> Tensor:
        return routed_lora(
            given.x,
            given.base,
            given.a,
            given.b,
            given.scale,
            index=given.index,
            weight=given.weight,
            impl=impl,
        )

    return run


COMPETITORS: dict[str, Callable[[Operands], Tensor]] = {
    **RIVALS,
    "triton": ours("triton"),
    "stacked": ours("stacked"),
}
#: Yardsticks, whose result is another one.
UNROUTED = ("plain_lora", "single_lora")
#: Cells of a run: what fits ten minutes, and the whole grid.
GRIDS = {
    "quick": {"tokens": [16, 256, 2048, 16384], "widths": [4096], "experts": [8, 64]},
    "full": {
        "tokens": [16, 64, 256, 1024, 2048, 4096, 8192, 16384],
        "widths": [768, 4096],
        "experts": [8, 16, 32, 64],
    },
}
#: Tokens of the pass `decode`.
DECODE = [1, 16, 64]


def operands(cell: dict[str, Any], device: str) -> Operands:
    """Return unit-scale operands with gradient; every token uses `slots` different experts."""
    generator = torch.Generator(device).manual_seed(0)
    tokens, width, experts, rank = (cell[name] for name in ("tokens", "width", "experts", "rank"))
    dtype = getattr(torch, cell["dtype"])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_()

    scores = torch.rand(tokens, experts, generator=generator, device=device)
    weight, index = scores.topk(cell["slots"], dim=1)
    return Operands(
        normal(tokens, width),
        normal(tokens, width),
        normal(experts, rank, width),
        normal(width, experts, rank),
        2.0,
        index=index.to(torch.int32),
        weight=weight.detach().requires_grad_(),
    )


def floor_seconds(cell: dict[str, Any], flops: float, bandwidth: float) -> float:
    """Return the time that no implementation of the sparse sum can beat on this device."""
    n, d, r, k = (cell[name] for name in ("tokens", "width", "rank", "slots"))
    size = getattr(torch, cell["dtype"]).itemsize
    used = min(cell["experts"], n * k)
    flop, moved = 4 * n * k * r * d, size * (n * d + 2 * used * r * d + 2 * n * d) + 8 * n * k * r
    total = max(flop / flops, moved / bandwidth)
    if cell["pass"] == "both":
        flop, moved = 8 * n * k * r * d, size * (4 * n * d + 6 * used * r * d) + 16 * n * k * r
        total += max(flop / flops, moved / bandwidth)
    return total


def wide(given: Operands) -> Tensor:
    """Return the result in fp32."""
    assert given.base is not None
    with torch.no_grad():
        return routed_lora(
            given.x.float(), given.base.float(), given.a.float(), given.b.float(), given.scale,
            index=given.index, weight=given.weight, impl="stacked",
        )  # fmt: skip


class Clock:
    """Times turns on a device, with a cold or a warm L2 cache."""

    def __init__(self, device: str, l2: str) -> None:
        self.cuda = device == "cuda"
        self.flush = (
            torch.empty(2**28, dtype=torch.int8, device=device) if self.cuda and l2 == "cold" else None
        )

    def seconds(self, turn: Callable[[], Any]) -> float:
        """Return how long one turn takes."""
        if not self.cuda:
            start = time.perf_counter()
            turn()
            return time.perf_counter() - start
        if self.flush is not None:
            self.flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        turn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def turn_of(
    run: Callable[[Operands], Tensor], given: Operands, cell: dict[str, Any], graph: bool
) -> Callable[[], Any]:
    """Return a function that runs the cell's pass once."""
    leaves = [given.base, given.x, given.a, given.b, given.weight]

    def forward() -> Tensor:
        with torch.no_grad():
            return run(given)

    def both() -> tuple[Tensor | None, ...]:
        y = run(given)
        return torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], y, allow_unused=True)

    turn: Callable[[], Any] = both if cell["pass"] == "both" else forward
    if not graph:
        return turn
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            turn()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        turn()
    return captured.replay


def measure(cell: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Time all competitors of one cell in turns."""
    given, clock = operands(cell, args.device), Clock(args.device, args.l2)
    size = getattr(torch, cell["dtype"]).itemsize
    exact, graph = wide(given), cell["pass"] == "decode" and args.device == "cuda"
    turns, absent, errors = {}, {}, {}
    for name, run in COMPETITORS.items():
        if name == "einsum" and cell["tokens"] * cell["experts"] * cell["width"] * size > MATERIALISED:
            absent[name] = "needs too much memory"
            continue
        if graph and name == "expert_loop":
            absent[name] = "waits for the device, so it cannot be captured"
            continue
        try:
            with torch.no_grad():
                errors[name] = float((run(given).float() - exact).abs().max() / exact.abs().max())
            turns[name] = turn_of(run, given, cell, graph)
            turns[name]()
        except (RuntimeError, ValueError) as error:
            turns.pop(name, None)
            absent[name] = str(error).splitlines()[0]
    del exact
    times: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(args.warmup + args.repeats):
        for name, turn in turns.items():
            elapsed = clock.seconds(turn)
            if repeat >= args.warmup:
                times[name].append(elapsed)
    plain = times["plain_lora"]
    bound = floor_seconds(cell, args.flops, args.bandwidth) if args.device == "cuda" else None
    rows = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        rows[name] = {
            "microseconds": middle * 1e6,
            "middle_half": [low * 1e6, high * 1e6],
            "error": errors[name] if name not in UNROUTED else None,
            "to_plain_lora": statistics.median(a / b for a, b in zip(values, plain, strict=True)),
            "to_floor": None if bound is None else middle / bound,
        }
    return {
        **cell,
        "floor_microseconds": None if bound is None else bound * 1e6,
        "rows": rows,
        "absent": absent,
    }


def cells(args: argparse.Namespace) -> list[dict[str, Any]]:
    names = ("pass", "width", "tokens", "rank", "experts", "slots", "dtype")
    every = []
    for name in args.passes:
        tokens = args.tokens or (DECODE if name == "decode" else GRIDS[args.grid]["tokens"])
        widths, experts = (getattr(args, key) or GRIDS[args.grid][key] for key in ("widths", "experts"))
        grid = itertools.product([name], widths, tokens, args.ranks, experts, args.slots, args.dtypes)
        every += [dict(zip(names, values, strict=True)) for values in grid]
    return [cell for cell in every if cell["slots"] <= cell["experts"]]


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--grid", choices=list(GRIDS), default="quick", help="how many shapes")
    add("--tokens", type=int, nargs="+", help="N; the grid's if left out")
    add("--widths", type=int, nargs="+", help="in- and out-features, d = o; the grid's if left out")
    add("--ranks", type=int, nargs="+", default=[8, 16, 64], help="rank of each expert, r")
    add("--experts", type=int, nargs="+", help="E; the grid's if left out")
    add("--slots", type=int, nargs="+", default=[1, 2, 4], help="experts per token, K")
    add("--dtypes", nargs="+", default=["bfloat16"], help="dtype of tokens and experts")
    passes = ["forward", "both", "decode"]
    add("--passes", nargs="+", default=passes, choices=passes, help="what is timed")
    add("--repeats", type=int, default=20, help="counted turns")
    add("--warmup", type=int, default=5, help="turns not counted")
    add("--l2", choices=["cold", "warm"], default="cold", help="state of the L2 cache before a turn")
    add("--flops", type=float, default=798e12, help="flop/s of a large matrix product on the device")
    add("--bandwidth", type=float, default=3.0e12, help="byte/s of a large copy on the device")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only rehearses")
    add("--out", type=Path, help="where to write the result as JSON, after every cell")
    add("--show", type=Path, help="measure nothing; print the table of a written result")
    args = parser.parse_args()
    if args.show:
        return args
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; run this where there is one, or rehearse with --device cpu.")
    return args


def main() -> None:
    args = parse()
    if args.show:
        print(shown(json.loads(args.show.read_text())["results"]))
        return
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "show")}
    report = {"manifest": collect() | {"command": "gpu.py " + " ".join(sys.argv[1:])}, "settings": settings}
    results: list[dict[str, Any]] = []
    grid = cells(args)
    for number, cell in enumerate(grid, 1):
        results.append(measure(cell, args))
        ratios = ", ".join(f"{name} {row['to_plain_lora']:.2f}" for name, row in results[-1]["rows"].items())
        place = " ".join(f"{name}={value}" for name, value in cell.items())
        print(f"[{number}/{len(grid)}] {place}: {ratios}", flush=True)
        if args.out:
            write(args.out, report | {"results": results})
    print(shown(results))


if __name__ == "__main__":
    main()
