r"""Time of one training step, and of inference: routed LoRA against plain LoRA, in a model or in one layer.

Three tables from one run, in which all variants take turns, so that a drifting machine slows all alike:

* top-k routing computed by our operator and by what others write (`kernels/rivals.py`);
* LoRA-Mixer (its soft stage), DynMoLE and the condenser with their losses, and with a routing trace: routing
  statistics of every site after every step, which `RoutingMonitor` takes every `log_every_n_steps` only;
* inference of LoRA-Mixer with its three best experts against all experts.

The model is a Llama of SmolLM2-135M's shape (random weights: time does not depend on them), every linear
layer adapted; with `--model layer` one linear layer of its feed-forward part. Times are processor time summed
over threads, which other programs on the machine disturb least, or wall time (`--clock wall`), which is what
two threads are for. What is reported is the median over rounds of the ratio to PEFT's LoRA of rank `E r`,
which has a little fewer parameters, as it has no router; for inference to dense gates.

    python benchmarks/routed_step.py --out benchmarks/results/routed_step.json
    python benchmarks/routed_step.py --threads 2 --clock wall \
        --out benchmarks/results/routed_step_threads.json
    python benchmarks/routed_step.py --model layer --out benchmarks/results/routed_layer.json

With `--compile` the main methods and plain LoRA are compiled whole by `torch.compile` (`fullgraph=True`), and
compared with plain LoRA compiled the same way:

    python benchmarks/routed_step.py --compile --layers 2 --out benchmarks/results/routed_step_compiled.json
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from moe_adapt.manifest import collect
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def smollm2_shape(layers: int, vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


class OneLayer(nn.Module):
    """A linear layer whose input wants its gradient, as within a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up_proj = nn.Linear(576, 1536, bias=False)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        """Return a loss of the output for tokens [N, 576]."""
        return SimpleNamespace(loss=self.up_proj(x).square().mean())


def make_step(
    model: nn.Module, batch: dict[str, torch.Tensor], trace: bool, compiled: bool = False
) -> Callable[[], None]:
    """Return a function that runs forward, backward and an AdamW update."""
    run = torch.compile(model, fullgraph=True) if compiled else model
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0
    )
    tuner = model.base_model
    if isinstance(tuner, RoutedLoraModel):
        tuner.follow(optimizer)

    def step() -> None:
        loss = run(**batch).loss
        if isinstance(tuner, RoutedLoraModel):
            loss = loss + tuner.aux_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if trace:
            tuner.routing_stats()

    return step


def make_inference(model: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a function that runs a forward without gradients."""

    @torch.no_grad()
    def run() -> None:
        model(**batch)

    return run


#: Label, and the implementation of top-k routing (`MOE_ADAPT_KERNEL`).
WAYS = {
    "routed, top-k": "auto",
    "top-k, loop over experts": "expert_loop",
    "top-k, materialised einsum": "einsum",
    "top-k, sort and grouped_mm": "grouped_mm",
    "top-k, stacked torch": "stacked_autograd",
}
#: Label, and the options of a published method.
METHODS: dict[str, dict[str, Any]] = {
    "routed, DynMoLE": {"method": "dynmole"},
    "LoRA-Mixer": {"method": "lora_mixer", "selector": {"name": "hard_soft", "k": 3, "hard_until": 0.0}},
    "condenser": {"method": "condenser"},
}
#: The methods that `torch.compile` takes whole.
COMPILED = ("top_k", "soft", "top_p", "dynmole", "condenser")
PLAIN = "plain LoRA"
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


def variants(args: argparse.Namespace) -> dict[str, tuple[Callable[[], None], str]]:
    """Return what to time, by label, and the implementation that it names."""
    if args.model == "layer":
        batch = {"x": torch.randn(args.tokens, 576, requires_grad=True)}
        targets = ["up_proj"]
    else:
        tokens = torch.randint(0, args.vocabulary, (args.batch, args.tokens // args.batch))
        batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
        targets = PROJECTIONS

    def adapted(config: peft.PeftConfig) -> nn.Module:
        base = OneLayer() if args.model == "layer" else smollm2_shape(args.layers, args.vocabulary)
        return peft.get_peft_model(base, config).train()

    def routed(**options: Any) -> nn.Module:
        settings = {"num_experts": args.experts, "r": args.rank, "alpha": 2.0 * args.rank}
        return adapted(RoutedLoraConfig(target_modules=targets, dropout=args.dropout, **(settings | options)))

    width = args.experts * args.rank
    plain = peft.LoraConfig(r=width, lora_alpha=2 * width, lora_dropout=args.dropout, target_modules=targets)
    found = {PLAIN: (make_step(adapted(plain), batch, False), "auto")}
    if args.compile:
        # All models share the code of PeftModel.forward, which is compiled anew for each of them.
        torch._dynamo.config.recompile_limit = 8 * (1 + len(args.methods))
        found[f"{PLAIN}, compiled"] = (make_step(adapted(plain), batch, False, compiled=True), "auto")
        for method in args.methods:
            found[f"{method}, eager"] = (make_step(routed(method=method), batch, False), "auto")
            found[f"{method}, compiled"] = (make_step(routed(method=method), batch, False, True), "auto")
        return found
    top_k = make_step(routed(method="top_k", selector={"name": "top_k", "k": args.k}), batch, False)
    found |= {name: (top_k, way) for name, way in WAYS.items()}
    for name, options in METHODS.items():
        found[name] = (make_step(model := routed(**options), batch, False), "auto")
        found[f"{name}, traced"] = (make_step(model, batch, True), "auto")
    for name, k in (("inference, all experts", args.experts), ("inference, three best experts", 3)):
        selector = {"name": "hard_soft", "k": k}
        model = routed(method="lora_mixer", selector=selector).eval()
        found[name] = (make_inference(model, batch), "auto")
    return found


def quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return median seconds, and median and quartiles of the ratio in each round, by variant."""
    register_rivals()
    steps = variants(args)
    clock = CLOCKS[args.clock]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in track(range(args.rounds + args.warmup), description="rounds"):
        for name, (step, way) in steps.items():
            with mock.patch.dict(os.environ, {KERNEL_VARIABLE: way}):
                start = clock()
                step()
                elapsed = clock() - start
            if turn >= args.warmup:
                seconds[name].append(elapsed)
    result = {}
    for name, values in seconds.items():
        yardstick = "inference, all experts" if name.startswith("inference") else PLAIN
        yardstick += ", compiled" if name.endswith(", compiled") else ""
        ratios = [v / b for v, b in zip(values, seconds[yardstick], strict=True)]
        result[name] = {
            "seconds_median": statistics.median(values),
            "ratio_median": statistics.median(ratios),
            "ratio_quartiles": quartiles(ratios),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["smollm2", "layer"], default="smollm2", help="what is adapted")
    parser.add_argument("--experts", type=int, default=8, help="experts per layer, E")
    parser.add_argument("--rank", type=int, default=8, help="rank of each expert, r")
    parser.add_argument("--k", type=int, default=2, help="experts kept per token, K")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout on the adapters' input")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per step")
    parser.add_argument("--batch", type=int, default=2, help="sequences per step")
    parser.add_argument("--layers", type=int, default=30, help="blocks of the model")
    parser.add_argument("--vocabulary", type=int, default=49152, help="tokens that the model knows")
    parser.add_argument("--rounds", type=int, default=11, help="counted rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds not counted")
    parser.add_argument("--compile", action="store_true", help="compare compiled steps instead")
    parser.add_argument(
        "--methods", nargs="+", choices=COMPILED, default=COMPILED, help="what is compiled with --compile"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--clock", choices=list(CLOCKS), default="processor", help="what time is taken")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args)
    table = Table("variant", "median s / step", "ratio", "middle half")
    for name, row in result.items():
        low, high = row["ratio_quartiles"]
        spread = f"{low:.2f} to {high:.2f}"
        table.add_row(name, f"{row['seconds_median']:.3f}", f"{row['ratio_median']:.3f}", spread)
    Console().print(table)
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        command = " ".join(["routed_step.py", *sys.argv[1:]]).replace(str(args.out), "FILE")
        manifest = collect() | {"command": command}
        report = {"manifest": manifest, "settings": settings, "results": result}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
