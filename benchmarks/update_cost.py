"""Time that SAME's statistics and transforms take of a training step.

    python benchmarks/update_cost.py --out benchmarks/results/update_cost.json

A feed-forward pair (d to 4 d to d) and four d x d projections in front stand for a transformer block; the
pair has eight experts of rank 8. A round times the plain step, then what is added to it: statistics of the
inputs (of every token, or sampled as by default, beyond a task's first tokens), and the transforms of router
rows and `A` after the step. The decomposition that the rules `paper` and `relevant` repeat every 50 steps is
timed, too. CPU time, one thread, medians.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_adapt.experts import ExpertBank
from moe_adapt.manifest import collect
from moe_adapt.optim import (
    DownPreconditioner,
    ExpertUsage,
    InputMoment,
    RowSample,
    StrictUpdate,
    UpdateHook,
)

EXPERTS, RANK, REFRESH = 8, 8, 50
#: Consecutive steps whose statistics are timed together: sampling leaves short steps out.
STEPS = 8


def timed(work: Any) -> float:
    """Return the CPU time of a call in milliseconds."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def measure(width: int, tokens: int, share: float, rounds: int) -> dict[str, Any]:
    """Return medians for one width."""
    torch.manual_seed(0)
    sizes = [(width, 4 * width), (4 * width, width)]
    front = [torch.randn(width, width) / width**0.5 for _ in range(4)]
    weights = [torch.randn(o, d) / d**0.5 for d, o in sizes]
    routers = [nn.Parameter(torch.randn(EXPERTS, d) / d**0.5) for d, _ in sizes]
    downs = [nn.Parameter(torch.randn(EXPERTS, RANK, d) / d**0.5) for d, _ in sizes]
    ups = [nn.Parameter(torch.zeros(o, EXPERTS, RANK)) for _, o in sizes]
    optimizer = torch.optim.AdamW([*routers, *downs, *ups], lr=1e-4)
    x = torch.randn(tokens, width, requires_grad=True)
    seen: list[torch.Tensor] = [x.detach(), torch.randn(tokens, 4 * width)]

    def step() -> None:
        hidden = x
        for weight in front:
            hidden = hidden @ weight.t()
        for weight, router, a, b in zip(weights, routers, downs, ups, strict=True):
            gates = (hidden @ router.t()).softmax(-1)
            hidden = ExpertBank(a, b, scale=2.0)(hidden, gates, hidden @ weight.t())
        hidden.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    moments = [InputMoment(d) for d, _ in sizes]
    for moment, inputs in zip(moments, seen, strict=True):
        moment.observe(inputs)
        moment.end_task()
        moment.observe(inputs)
    transforms: dict[str, Any] = {}
    for number, (moment, router, a) in enumerate(zip(moments, routers, downs, strict=True)):
        strict, down = StrictUpdate(), DownPreconditioner()
        strict.prepare(moment, 1)
        down.prepare(moment)
        transforms |= {f"{number}/router": (router, [strict]), f"{number}/A": (a, [down])}
    hook = UpdateHook(transforms)

    gates = torch.rand(tokens, EXPERTS).softmax(-1)
    usages = [ExpertUsage(EXPERTS) for _ in sizes]
    samples = [RowSample(d, share) for d, _ in sizes]
    for sample in samples:
        sample.chosen(16 * width)

    def observe() -> None:
        for moment, usage, sample, inputs in zip(moments, usages, samples, seen, strict=True):
            positions, weight = sample.chosen(tokens)
            rows, used = (inputs, gates) if positions is None else (inputs[positions], gates[positions])
            if len(rows):
                moment.observe(rows, weight)
                usage.observe(used, rows, weight)

    def observe_steps() -> None:
        for _ in range(STEPS):
            observe()

    def decompose() -> None:
        for moment in moments:
            moment.spectrum("all")

    def transform() -> None:
        hook.before_step()
        hook.after_step()

    times: dict[str, list[float]] = {"step": [], "statistics": [], "transforms": [], "decomposition": []}
    step()
    for _ in range(rounds):
        for name, work in (("step", step), ("statistics", observe_steps), ("transforms", transform)):
            times[name].append(timed(work))
    times["decomposition"] = [timed(decompose) for _ in range(3)]
    medians = {f"{name}_ms": statistics.median(found) for name, found in times.items()}
    medians["statistics_ms"] /= STEPS
    added = medians["statistics_ms"] + medians["transforms_ms"]
    return {
        "widths": f"{width}, {4 * width}",
        "tokens": tokens,
        "observe_share": share,
        **medians,
        "share_of_step": added / medians["step_ms"],
        "share_of_step_with_refresh": (added + medians["decomposition_ms"] / REFRESH) / medians["step_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(width, tokens, share, options.rounds)
        for width, tokens in ((256, 2048), (256, 512), (128, 2048))
        for share in (1.0, 1 / 16)
    ]
    facts = collect()
    facts["command"] = "update_cost.py --out benchmarks/results/update_cost.json"
    options.out.write_text(json.dumps({"rows": rows, "manifest": facts}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
