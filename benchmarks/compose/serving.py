"""Requests per second of a batch in which every request names its own LoRA adapter.

64 requests of 16 tokens, their adapters drawn by Zipf's law from E. Adapters sit on two layers per
block (query, value) or on all seven. What is compared, in turns:

* the base model alone, which knows no adapter;
* a composed adapter of E experts, chosen by id (`moe-adapt compose --router none`): each sequence's factors
  are gathered once per layer and multiplied as a batch;
* PEFT's mixed batch (`adapter_names`), which loops over the adapters of the batch in every layer;
* PEFT, one adapter after the other (`set_adapter`), each with its requests in one batch.

PEFT holds those of the E adapters that the batch names, which favours it. Weights are random, since time does
not depend on them. Time is processor time of one thread, the median of some rounds; outputs are compared.

    python benchmarks/compose/serving.py --out benchmarks/results/compose_serving.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from moe_adapt.hub.composition.build import Composer, write
from moe_adapt.hub.composition.folder import Record
from moe_adapt.manifest import collect
from moe_adapt.tuner.stock_lora import StockLora

RANK, TOKENS, REQUESTS = 8, 16, 64
#: Layers with adapters in every block.
PROJECTIONS = {
    "attention": ("self_attn.q_proj", "self_attn.v_proj"),
    "all": (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ),
}


def base_model(layers: int, width: int) -> LlamaForCausalLM:
    """Return a Llama of SmolLM2's proportions with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 96,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def adapter(model: Any, number: int, projections: Sequence[str]) -> StockLora:
    """Return an adapter with random weights."""
    generator = torch.Generator().manual_seed(number)
    factors = {}
    for layer in range(model.config.num_hidden_layers):
        for name in projections:
            site = f"model.layers.{layer}.{name}"
            weight = model.get_submodule(site).weight
            shapes = ((RANK, weight.shape[1]), (weight.shape[0], RANK))
            factors[site] = tuple(torch.randn(shape, generator=generator) * 0.05 for shape in shapes)
    return StockLora(
        uid=f"a{number:03d}",
        source="random",
        base_model=None,
        factors=factors,
        scales=dict.fromkeys(factors, 1.0),
        head={},
        head_paths=[],
        task="CAUSAL_LM",
    )


def composed(model: Any, loras: Sequence[StockLora], folder: Path) -> Any:
    """Return the model with adapters composed, chosen by id alone."""
    own = {lora.uid: lora for lora in loras}
    record = Record(None, None, "CAUSAL_LM", None, 0, 1, 0.0, 0)
    record.experts = {uid: {"source": "random", "examples": 0} for uid in own}
    write(Composer(model, None, own, None, record), folder, overwrite=True)
    return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def pefts(model: Any, loras: Sequence[StockLora]) -> Any:
    """Return the model with PEFT's own copies of some adapters."""
    targets = sorted({site.rpartition(".")[2] for site in loras[0].factors})
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
    found: Any = None
    for lora in loras:
        if found is None:
            found = peft.get_peft_model(model, config, adapter_name=lora.uid)
        else:
            found.add_adapter(lora.uid, config, low_cpu_mem_usage=True)
        for site, (a, b) in lora.factors.items():
            layer = found.base_model.model.get_submodule(site)
            layer.lora_A[lora.uid].weight = torch.nn.Parameter(a, requires_grad=False)
            layer.lora_B[lora.uid].weight = torch.nn.Parameter(b, requires_grad=False)
    return found.eval()


def drawn(count: int) -> list[int]:
    """Return the adapter of each request, by Zipf's law."""
    weights = 1 / torch.arange(1, count + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(count)
    return torch.multinomial(weights, REQUESTS, replacement=True, generator=generator).tolist()


def one_by_one(model: Any, ids: Tensor, names: Sequence[str]) -> Tensor:
    """Return the logits of all requests, one adapter after the other."""
    logits: Tensor = torch.empty(0)
    for name in dict.fromkeys(names):
        rows = [row for row, own in enumerate(names) if own == name]
        model.set_adapter(name)
        found = model(input_ids=ids[rows]).logits
        logits = logits if len(logits) else found.new_empty(len(names), *found.shape[1:])
        logits[rows] = found
    return logits


def seconds(call: Callable[[], Any]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(
    count: int, projections: Sequence[str], layers: int, width: int, rounds: int, folder: Path
) -> dict[str, Any]:
    """Return requests per second by method, and the largest difference of outputs."""
    numbers = drawn(count)
    names = [f"a{number:03d}" for number in numbers]
    ids = torch.randint(1, 1024, (REQUESTS, TOKENS), generator=torch.Generator().manual_seed(0))
    base = base_model(layers, width)
    loras = [adapter(base, number, projections) for number in range(count)]
    ours = composed(base_model(layers, width), loras, folder)
    theirs = pefts(base_model(layers, width), [loras[number] for number in sorted(set(numbers))])
    calls: dict[str, Callable[[], Any]] = {
        "base alone": lambda: base(input_ids=ids),
        "composed, by id": lambda: ours(input_ids=ids, adapter_ids=names),
        "PEFT adapter_names": lambda: theirs(input_ids=ids, adapter_names=names),
        "PEFT one after the other": lambda: one_by_one(theirs, ids, names),
    }
    plain, own, mixed, _ = (call() for call in calls.values())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    speed = {name: REQUESTS / statistics.median(values) for name, values in times.items()}
    return {
        "adapters": count,
        "layers per block": len(projections),
        "in the batch": len(set(numbers)),
        "requests per second": {name: round(value, 2) for name, value in speed.items()},
        "share of the base": round(speed["composed, by id"] / speed["base alone"], 3),
        "times PEFT": round(speed["composed, by id"] / speed["PEFT adapter_names"], 3),
        "largest difference from PEFT": float((mixed.logits - own.logits).abs().max()),
        "largest change by adapters": float((mixed.logits - plain.logits).abs().max()),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--projections", nargs="+", choices=list(PROJECTIONS), default=list(PROJECTIONS))
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for name in options.projections:
            for count in options.adapters:
                sizes = (options.layers, options.width, options.rounds, Path(folder) / "composed")
                rows.append(measure(count, PROJECTIONS[name], *sizes))
                print(json.dumps(rows[-1], indent=1), flush=True)
    settings = {"layers": options.layers, "width": options.width, "rank": RANK, "rounds": options.rounds}
    settings |= {"requests": REQUESTS, "tokens": TOKENS, "projections": PROJECTIONS}
    if options.out is not None:
        content = {"settings": settings, "rows": rows, "manifest": collect()}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
