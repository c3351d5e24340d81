"""Measure what work costs on this machine, for the dispatcher: `python -m moe_adapt.kernels.tune --out FILE`.

Every implementation runs a grid of problems, taking turns, forward alone and with its backward pass. The
constants of the cost model start as the non-negative ones with the least squared relative error (`fit`) and
are then moved to where the choice between implementations loses least time (`refine`): no linear model tells
the time of thin products exactly, but it only has to tell which is faster. The printed table says how far off
the choices are. On the CPU time is the processor time of one thread, elsewhere wall-clock time after
synchronisation.

Timings are kept if asked (``--timings``), so that constants can be fitted again without measuring.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from operator import mul
from pathlib import Path

import torch
from torch import Tensor

from moe_adapt.kernels.dispatch import COSTS
from moe_adapt.kernels.implementations import Work, find, implementations
from moe_adapt.kernels.operator import routed_lora
from moe_adapt.kernels.problem import Problem

__all__ = [
    "Timing",
    "fit",
    "fitted",
    "grid",
    "inputs",
    "measure",
    "refine",
    "run_once",
    "with_implementation",
]

#: Median seconds of forward, and of forward with backward.
Timing = tuple[float, float]


def grid(device: str, dtypes: Sequence[torch.dtype]) -> list[Problem]:
    """Return the problems to measure: small and large, few and many experts."""
    tokens = (16, 128, 512, 2048)
    features = ((64, 64), (576, 1536), (768, 768))
    few = ((8, 1, 8), (8, 2, 8), (8, 4, 8), (8, 2, 16), (16, 2, 8), (16, 2, 16))
    experts = (*few, (32, 2, 8), (64, 1, 8), (64, 2, 8), (64, 4, 16))
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


def refine(
    work: Mapping[str, Sequence[Sequence[float]]],
    seconds: Mapping[str, Sequence[float]],
    constants: Mapping[str, Sequence[float]],
    steps: int = 400,
) -> dict[str, list[float]]:
    """Return constants near the given ones whose choices lose least time.

    Minimises the mean loss of a softened choice, `sum_i softmax(-log estimate_i / 0.1) (t_i / t_best - 1)`,
    plus a little of the squared logarithmic error, which keeps the estimates in seconds.

    Args:
        work: Amounts of work of each implementation, problem by problem.
        seconds: What each problem took each implementation.
        constants: Where to start.
        steps: Steps of Adam.
    """
    names = list(work)
    amounts = {name: torch.tensor(work[name], dtype=torch.float64) for name in names}
    scales = {name: amounts[name].amax(dim=0).clamp(min=1e-300) for name in names}
    times = torch.tensor([seconds[name] for name in names], dtype=torch.float64).t()
    losses = times / times.amin(dim=1, keepdim=True) - 1
    logs = []
    for name in names:
        start = torch.tensor(constants[name], dtype=torch.float64) * scales[name]
        logs.append(start.clamp(min=1e-4 * float(start.max())).log().requires_grad_())
    optimizer = torch.optim.Adam(logs, lr=0.02)
    for _ in range(steps):
        estimates = torch.stack(
            [((amounts[n] / scales[n]) @ c.exp()).log() for n, c in zip(names, logs, strict=True)], dim=1
        )
        chosen = (-estimates / 0.1).softmax(dim=1)
        loss = (chosen * losses).sum(dim=1).mean() + 0.02 * (estimates - times.log()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        name: [float(f"{value:.4g}") for value in (log.detach().exp() / scales[name]).tolist()]
        for name, log in zip(names, logs, strict=True)
    }


def fitted(measured: Sequence[tuple[Problem, dict[str, Timing]]]) -> dict[str, dict[str, list[float]]]:
    """Return the constants by implementation and dtype, and print where their choice loses time."""
    constants: dict[str, dict[str, list[float]]] = {}
    lost = []
    for dtype in {problem.dtype for problem, _ in measured}:
        cases = [
            (problem._replace(trains=trains), {name: timing[trains] for name, timing in timings.items()})
            for problem, timings in measured
            if problem.dtype == dtype
            for trains in (False, True)
        ]
        names = list(cases[0][1])
        work = {name: [find(name).work(problem) for problem, _ in cases] for name in names}  # type: ignore[misc]
        seconds = {name: [times[name] for _, times in cases] for name in names}
        starts = {name: fit(list(zip(work[name], seconds[name], strict=True))) for name in names}
        found = refine(work, seconds, starts)
        for name in names:
            constants.setdefault(name, {})[str(dtype).removeprefix("torch.")] = found[name]
        for place, (problem, times) in enumerate(cases):
            guess = min(names, key=lambda name: sum(map(mul, work[name][place], found[name])))
            lost.append((times[guess] / min(times.values()), guess, problem))
    for loss, guess, problem in lost:
        if loss > 1.05:
            print(f"{loss:.2f} times the best: {guess} for {problem}")
    within = sum(loss <= 1.05 for loss, *_ in lost)
    worst = max(loss for loss, *_ in lost)
    print(f"{within} of {len(lost)} choices within 5 % of the best, at worst {worst:.2f} times")
    return constants


def stored(measured: Sequence[tuple[Problem, dict[str, Timing]]]) -> list[dict]:
    """Return timings as JSON types."""
    return [
        {"problem": problem._asdict() | {"dtype": str(problem.dtype).removeprefix("torch.")}, "seconds": t}
        for problem, t in measured
    ]


def main() -> None:
    """Run the tuner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device type"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="dtypes to tune")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds per problem")
    parser.add_argument("--out", type=Path, help="where to write the constants; the packaged file by default")
    parser.add_argument("--timings", type=Path, help="keep timings here; if the file exists, measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured: list[tuple[Problem, dict[str, Timing]]] = []
    if args.timings and args.timings.is_file():
        for row in json.loads(args.timings.read_text(encoding="utf-8")):
            shape = row["problem"] | {"dtype": getattr(torch, row["problem"]["dtype"])}
            measured.append((Problem(**shape), row["seconds"]))
    else:
        problems = grid(args.device, [getattr(torch, name) for name in args.dtypes])
        for number, problem in enumerate(problems, start=1):
            names = [
                i.name
                for i in implementations()
                if i.work and not i.refusal(problem) and i.name != "reference"
            ]
            runs = {name: with_implementation(name) for name in names}
            measured.append((problem, measure(problem, runs, args.rounds)))
            print(f"\r{number} of {len(problems)} problems", end="", flush=True)
        print()
        if args.timings:
            args.timings.write_text(json.dumps(stored(measured)) + "\n", encoding="utf-8")
    out = args.out or COSTS / f"{args.device}.json"
    constants: dict[str, dict[str, list[float]]] = {}
    if out.is_file():  # what is not measured now keeps its constants
        constants = json.loads(out.read_text(encoding="utf-8"))["seconds_per"]
    for name, by_dtype in fitted(measured).items():
        constants.setdefault(name, {}).update(by_dtype)
    report = {
        "device": args.device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "order": list(Work._fields),
        "seconds_per": constants,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
