"""Measure what work costs on this machine, for the dispatcher: `python -m moe_adapt.kernels.tune --out FILE`.

Every implementation runs a grid of problems, taking turns, forward alone and with its backward pass. The
constants of the cost model are the non-negative ones with the least squared relative error; the printed table
says how far off the resulting choices are. On the CPU time is the processor time of one thread, elsewhere
wall-clock time after synchronisation.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from moe_adapt.kernels.dispatch import COSTS
from moe_adapt.kernels.implementations import find, implementations
from moe_adapt.kernels.operator import routed_lora
from moe_adapt.kernels.problem import Problem

__all__ = ["Timing", "fit", "grid", "inputs", "measure", "run_once", "with_implementation"]

#: Median seconds of forward, and of forward with backward.
Timing = tuple[float, float]


def grid(device: str, dtypes: Sequence[torch.dtype]) -> list[Problem]:
    """Return the problems to measure: small and large, few and many experts."""
    tokens = (16, 128, 512, 2048)
    features = ((64, 64), (576, 1536), (768, 768))
    experts = ((8, 1, 8), (8, 2, 8), (8, 4, 8), (16, 2, 8), (8, 2, 16), (32, 2, 8), (64, 2, 8), (64, 4, 16))
    return [
        Problem(n, d, o, e, r, k, dtype, device, True)
        for dtype, n, (d, o), (e, k, r) in itertools.product(dtypes, tokens, features, experts)
    ]


def inputs(problem: Problem, seed: int = 0) -> dict[str, Tensor]:
    """Return random operands of unit scale; each token has `K` different experts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        return values.to(problem.device, problem.dtype).requires_grad_(problem.trains)

    n, e, k = problem.tokens, problem.experts, problem.slots or problem.experts
    index = torch.rand(n, e, generator=generator).argsort(dim=1)[:, :k].to(problem.device)
    gates = torch.zeros(n, e).scatter_(1, index.cpu(), torch.rand(n, k, generator=generator))
    return {
        "x": normal(n, problem.in_features),
        "base": normal(n, problem.out_features).detach(),
        "a": normal(e, problem.rank, problem.in_features),
        "b": normal(problem.out_features, e, problem.rank),
        "gates": gates.to(problem.device).requires_grad_(problem.trains),
        "index": index,
    }


def run_once(run: Callable[[], Tensor], leaves: Sequence[Tensor], clock: Callable[[], float]) -> Timing:
    """Return the seconds of one forward, and of it with its backward."""
    start = clock()
    result = run()
    forward = clock() - start
    if leaves:
        torch.autograd.grad(result, leaves, torch.ones_like(result), allow_unused=True)
    return forward, clock() - start


def measure(
    problem: Problem, runs: dict[str, Callable[[dict[str, Tensor]], Tensor]], rounds: int
) -> dict[str, Timing]:
    """Return the median timings of several ways to compute one problem, taking turns.

    Args:
        problem: The problem.
        runs: What to time, by name; called with the operands of `inputs`.
        rounds: Counted rounds; one more warms up.
    """
    operands = inputs(problem)
    leaves = [tensor for tensor in operands.values() if tensor.requires_grad]

    def clock() -> float:
        if problem.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    times: dict[str, list[Timing]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            timing = run_once(lambda run=run: run(operands), leaves, clock)  # type: ignore[misc]
            if turn:
                times[name].append(timing)
    return {
        name: (statistics.median(t[0] for t in found), statistics.median(t[1] for t in found))
        for name, found in times.items()
    }


def with_implementation(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return a function that computes operands by the named implementation."""
    return lambda operands: routed_lora(**operands, scale=2.0, impl=name)  # type: ignore[arg-type]


def fit(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Return the non-negative constants whose estimates have the least squared relative error.

    Args:
        rows: Amounts of work, and the seconds that they took.

    >>> fit([((1.0, 0.0), 2.0), ((0.0, 4.0), 2.0), ((1.0, 4.0), 4.0)])
    [2.0, 0.5]
    """
    work = torch.tensor([[amount / seconds for amount in amounts] for amounts, seconds in rows]).double()
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    count = work.shape[1]
    best, best_error = [0.0] * count, float("inf")
    for size in range(1, count + 1):
        for columns in itertools.combinations(range(count), size):
            scale = work[:, columns].abs().amax(dim=0).clamp(min=1e-300)
            solution = torch.linalg.lstsq(work[:, columns] / scale, ones).solution
            error = (work[:, columns] / scale @ solution - ones).square().sum().item()
            if (solution >= 0).all() and error < best_error:
                best, best_error = [0.0] * count, error
                for column, value in zip(columns, (solution[:, 0] / scale).tolist(), strict=True):
                    best[column] = float(f"{value:.4g}")
    return best


def main() -> None:
    """Run the tuner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device type"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="dtypes to tune")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds per problem")
    parser.add_argument("--out", type=Path, help="where to write the constants; the packaged file by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtypes = [getattr(torch, name) for name in args.dtypes]
    rows: dict[tuple[str, str], list[tuple[Sequence[float], float]]] = {}
    measured: list[tuple[Problem, dict[str, Timing]]] = []
    for number, problem in enumerate(problems := grid(args.device, dtypes), start=1):
        names = [
            i.name for i in implementations() if i.work and not i.refusal(problem) and i.name != "reference"
        ]
        timings = measure(problem, {name: with_implementation(name) for name in names}, args.rounds)
        measured.append((problem, timings))
        for name, timing in timings.items():
            work = find(name).work
            assert work is not None
            found = rows.setdefault((name, str(problem.dtype).removeprefix("torch.")), [])
            found += [
                (work(problem._replace(trains=trains)), seconds)
                for trains, seconds in zip((False, True), timing, strict=True)
            ]
        print(f"\r{number} of {len(problems)} problems", end="", flush=True)
    out = args.out or COSTS / f"{args.device}.json"
    constants: dict[str, dict[str, list[float]]] = {}
    if out.is_file():  # what is not measured now keeps its constants
        constants = json.loads(out.read_text(encoding="utf-8"))["seconds_per"]
    for (name, dtype), found in rows.items():
        constants.setdefault(name, {})[dtype] = fit(found)
    print()
    for problem, timings in measured:
        dtype = str(problem.dtype).removeprefix("torch.")
        guess = min(
            timings,
            key=lambda name: sum(
                amount * seconds
                for amount, seconds in zip(find(name).work(problem), constants[name][dtype], strict=True)  # type: ignore[misc]
            ),
        )
        loss = timings[guess][1] / min(timing[1] for timing in timings.values())
        if loss > 1.05:
            print(f"{loss:.2f} times the best: {guess} for {problem}")
    report = {
        "device": args.device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "order": ["flop", "byte", "call", "segment"],
        "seconds_per": constants,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
