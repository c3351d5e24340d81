"""Time of one training step: routed LoRA against plain LoRA of the same width and against a per-expert loop.

All variants adapt every linear layer of a Llama of SmolLM2-135M's shape (random weights: time does not depend
on them) and take turns within one run, so that a drifting machine slows all of them alike. Times are
processor time, which other programs on the machine disturb least. What is reported is the median over rounds
of the ratio to PEFT's LoRA of rank `E r`.

    python benchmarks/routed_step.py --out benchmarks/results/routed_step.json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
from kernels.rivals import register_rivals
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from moe_adapt.kernels.dispatch import KERNEL_VARIABLE
from moe_adapt.training.manifest import collect
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def smollm2_shape(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def make_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a function that runs forward, backward and an AdamW update."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0
    )
    tuner = model.base_model

    def step() -> None:
        loss = model(**batch).loss
        if isinstance(tuner, RoutedLoraModel):
            loss = loss + tuner.aux_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def expert_by_expert() -> AbstractContextManager:
    """Compute mixtures with a loop over experts."""
    return mock.patch.dict(os.environ, {KERNEL_VARIABLE: "expert_loop"})


def variants(
    args: argparse.Namespace,
) -> dict[str, tuple[Callable[[], None], Callable[[], AbstractContextManager]]]:
    tokens = torch.randint(0, 49152, (args.batch, args.tokens // args.batch))
    batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    alpha = 2.0 * args.rank

    def routed(method: str) -> Callable[[], None]:
        options = {"selector": {"name": "top_k", "k": args.k}} if method == "top_k" else {}
        config = RoutedLoraConfig(
            method=method,
            target_modules=PROJECTIONS,
            num_experts=args.experts,
            r=args.rank,
            alpha=alpha,
            dropout=args.dropout,
            **options,
        )
        return make_step(peft.get_peft_model(smollm2_shape(args.layers), config).train(), batch)

    def plain() -> Callable[[], None]:
        width = args.experts * args.rank
        config = peft.LoraConfig(
            r=width, lora_alpha=2 * width, lora_dropout=args.dropout, target_modules=PROJECTIONS
        )
        return make_step(peft.get_peft_model(smollm2_shape(args.layers), config).train(), batch)

    return {
        "plain LoRA": (plain(), nullcontext),
        "routed, top-k": (routed("top_k"), nullcontext),
        "routed, DynMoLE": (routed("dynmole"), nullcontext),
        "routed, per-expert loop": (routed("top_k"), expert_by_expert),
    }


def quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    register_rivals()
    steps = variants(args)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in track(range(args.rounds + args.warmup), description="rounds"):
        for name, (step, context) in steps.items():
            with context():
                start = time.process_time()
                step()
                elapsed = time.process_time() - start
            if turn >= args.warmup:
                seconds[name].append(elapsed)
    base = seconds["plain LoRA"]
    return {
        name: {
            "seconds_median": statistics.median(values),
            "ratio_median": statistics.median(v / b for v, b in zip(values, base, strict=True)),
            "ratio_quartiles": quartiles([v / b for v, b in zip(values, base, strict=True)]),
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=8, help="experts per layer, E")
    parser.add_argument("--rank", type=int, default=8, help="rank of each expert, r")
    parser.add_argument("--k", type=int, default=2, help="experts kept per token, K")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout on the adapters' input")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per step")
    parser.add_argument("--batch", type=int, default=2, help="sequences per step")
    parser.add_argument("--layers", type=int, default=30, help="blocks of the model")
    parser.add_argument("--rounds", type=int, default=11, help="counted rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds not counted")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args)
    table = Table("variant", "median s / step", "ratio to plain LoRA", "middle half")
    for name, row in result.items():
        low, high = row["ratio_quartiles"]
        spread = f"{low:.2f} to {high:.2f}"
        table.add_row(name, f"{row['seconds_median']:.3f}", f"{row['ratio_median']:.3f}", spread)
    Console().print(table)
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        manifest = collect() | {"command": "routed_step.py --out FILE"}
        report = {"manifest": manifest, "settings": settings, "results": result}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
