"""Time of DyMoE's training step against the number of banks, one per task.

    python benchmarks/dymoe_step.py --out benchmarks/results/dymoe_step.json

A feed-forward pair (d to 4 d to d) with DyMoE's adapter (four experts of rank 4 per task, cosine router,
token assignment, routing separation) is grown task by task; at some numbers of banks forward, backward and
AdamW are timed, the sizes interleaved, and floating-point operations counted. Beside them is the step in
which old banks are trained as well: what freezing saves. What frozen banks still cost in the backward pass is
the gradient with respect to their inputs, which the layers below need; the router's rows are one parameter,
whose old rows are restored after the step. CPU time, one thread, medians.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moe_adapt.manifest import collect
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.edit import add_experts
from moe_adapt.tuner.model import adapted_layers

BANKS = (1, 2, 4, 8, 15)
PER_TASK = 4


class Step:
    """A training step of a pair of layers with some banks.

    Args:
        banks: Number of banks.
        frozen: Whether the older ones are frozen.
        width: Width of the pair's input.
        tokens: Tokens per step.
    """

    def __init__(self, banks: int, frozen: bool, width: int, tokens: int) -> None:
        torch.manual_seed(0)
        pair = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.model: Any = get_peft_model(
            pair,
            RoutedLoraConfig(method="dymoe", num_experts=PER_TASK, target_modules=["0", "2"], dropout=0.0),
        )
        self.tuner = self.model.base_model
        for bank in range(1, banks):
            if frozen:
                self.tuner.freeze_experts(list(range(bank * PER_TASK)))
            add_experts(self.tuner, PER_TASK)
        for layer in adapted_layers(self.model):
            for factors in (layer.moe_adapt_B, layer.moe_adapt_B_frozen):
                for value in factors.values():
                    value.data.normal_(0, 0.02)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.x = torch.randn(tokens, width)
        self.model.train()
        self.tuner.hooks.session.progress = 0.75

    def loss(self) -> Tensor:
        """Return the loss of one batch."""
        return self.model(self.x).square().mean() + self.tuner.aux_loss()

    def times(self) -> dict[str, float]:
        """Return the CPU time of one step and of its parts in milliseconds."""
        marks = [time.process_time()]
        loss = self.loss()
        marks.append(time.process_time())
        loss.backward()
        marks.append(time.process_time())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(time.process_time())
        parts = [1000 * (b - a) for a, b in pairwise(marks)]
        return dict(zip(("forward", "backward", "optimizer"), parts, strict=True)) | {"step": sum(parts)}

    def operations(self) -> dict[str, float]:
        """Return millions of floating-point operations of forward and backward."""
        found = {}
        with FlopCounterMode(display=False) as counter:
            loss = self.loss()
        found["forward_mflop"] = counter.get_total_flops() / 1e6
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        self.optimizer.zero_grad()
        return {**found, "backward_mflop": counter.get_total_flops() / 1e6}


def measure(width: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Return medians for every number of banks, old ones frozen and not."""
    cases = [(banks, frozen) for banks in BANKS for frozen in (True, False) if banks > 1 or frozen]
    steps = {case: Step(*case, width, tokens) for case in cases}
    found: dict[tuple[int, bool], list[dict[str, float]]] = {case: [] for case in cases}
    for step in steps.values():
        step.times()
    for _ in range(rounds):
        for case, step in steps.items():
            found[case].append(step.times())
    rows = []
    for (banks, frozen), times in found.items():
        medians = {f"{part}_ms": statistics.median(t[part] for t in times) for part in times[0]}
        trained = steps[banks, frozen].parameters
        row = {"banks": banks, "old_banks_frozen": frozen, "parameters_with_gradient": trained}
        rows.append({**row, **medians, **steps[banks, frozen].operations()})
    first = rows[0]
    for row in rows:
        row["times_one_bank"] = row["step_ms"] / first["step_ms"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.width, options.tokens, options.rounds)
    facts = collect()
    facts["command"] = "dymoe_step.py --out benchmarks/results/dymoe_step.json"
    content = {"width": options.width, "tokens": options.tokens, "rows": rows, "manifest": facts}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
