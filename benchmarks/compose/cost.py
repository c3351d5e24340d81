"""What routing costs, what adding an adapter costs, and what removing one leaves behind.

    python benchmarks/compose/cost.py --data $MOE_ADAPT_DATA --backbone prepared/minilm --runs runs/compose

With ``--language prepared/smollm2`` it measures the generation of texts instead, and keeps the rest.

Needs the adapters and rows of ``codes-0`` that `prepare.py` left. Times are processor seconds of one thread.
What is compared runs in turns in one process; the ratio of each turn counts, and its median is given with the
quartiles. Adapters of the language model are random: their time does not depend on their values.

Writes ``benchmarks/results/compose_cost.json``.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from encoder import MIDDLE, Halves
from facts import portable
from prepare import LENGTH, adapter_folder, data_of
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_adapt.hub.composition import add_adapter, compose, remove_adapter
from moe_adapt.manifest import collect

RESULT = Path(__file__).resolve().parents[1] / "results" / "compose_cost.json"
TURNS, GENERATED = 41, 64
#: Seconds of a way of running; its name.
Ways = dict[str, Callable[[], Any]]


def in_turns(ways: Ways, turns: int) -> dict[str, list[float]]:
    """Return the processor seconds of every way in every turn; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            start = time.process_time()
            with torch.no_grad():
                run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Return median and quartiles of the ratios of two ways, turn by turn."""
    ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    first, median, third = statistics.quantiles(ratios, n=4)
    return {"median": median, "first quartile": first, "third quartile": third}


def classification(halves: Halves, sources: dict[str, str], folder: Path, texts: list[str]) -> dict[str, Any]:
    """Time one forward of 32 texts: the base, one LoRA, the composed adapter by id and routed."""
    model = peft.PeftModel.from_pretrained(halves.fresh(), str(folder)).eval()
    single = peft.PeftModel.from_pretrained(halves.fresh(), next(iter(sources.values()))).eval()
    batch = halves.tokens(texts)
    ids = [list(sources)[number % len(sources)] for number in range(len(texts))]
    seconds = in_turns(
        {
            "base": lambda: halves.base(**batch),
            "one LoRA": lambda: single(**batch),
            "known ids": lambda: model(**batch, adapter_ids=ids),
            "routed": lambda: model(**batch),
        },
        TURNS,
    )
    return {
        "texts": len(texts),
        "tokens": int(batch["attention_mask"].sum()),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "routed / known ids": ratio(seconds, "routed", "known ids"),
        "routed / one LoRA": ratio(seconds, "routed", "one LoRA"),
        "routed / base": ratio(seconds, "routed", "base"),
    }


def random_loras(base: Any, to: Path, names: list[str]) -> dict[str, str]:
    """Save random LoRAs of rank 8 on query and value of all layers."""
    sources = {}
    for number, name in enumerate(names):
        torch.manual_seed(number)
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(base, config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=1e-3)
        model.save_pretrained(str(to / name))
        model.unload()
        sources[name] = str(to / name)
    return sources


def generation(language: Path, examples: dict[str, list[str]], turns: int) -> dict[str, Any]:
    """Time the generation of 64 tokens for four prompts, by id and routed in the middle layer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(language, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as name:
        sources = random_loras(base, Path(name), list(examples))
        to, middle = Path(name) / "composed", 2 * base.config.num_hidden_layers // 3
        compose(sources, examples, to, base=base, tokenizer=tokenizer, layer=middle, max_length=LENGTH)
        model = peft.PeftModel.from_pretrained(base, str(to)).eval()
    prompts = [texts[0] for texts in examples.values()]
    batch = dict(tokenizer(prompts, return_tensors="pt", padding=True))
    options = {
        "do_sample": False,
        "max_new_tokens": GENERATED,
        "min_new_tokens": GENERATED,
        "pad_token_id": tokenizer.pad_token_id,
    }
    seconds = in_turns(
        {
            "known ids": lambda: model.generate(**batch, **options, adapter_ids=list(examples)),
            "routed": lambda: model.generate(**batch, **options),
        },
        turns,
    )
    return {
        "prompts": len(prompts),
        "prompt tokens": int(batch["attention_mask"].sum()),
        "generated tokens each": GENERATED,
        "block": middle,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "routed / known ids": ratio(seconds, "routed", "known ids"),
    }


def outputs(halves: Halves, folder: Path, texts: list[str]) -> tuple[Tensor, list[str | None]]:
    """Return the mean hidden states of texts, one batch after the other, and who answered."""
    model = peft.PeftModel.from_pretrained(halves.fresh(), str(folder)).eval()
    found, names = [], []
    for start in range(0, len(texts), 40):
        with torch.no_grad():
            found.append(model(**halves.tokens(texts[start : start + 40])).last_hidden_state.sum(dim=1))
        names += model.base_model.sample_routes().names()
    return torch.cat(found), names


def exactness(halves: Halves, folder: Path, removed: str, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Remove an adapter: what changes on the rows of others, and on its own rows beside the base."""
    rows = [text for own in texts.values() for text in own]
    tasks = [task for task, own in texts.items() for _ in own]
    before, went = outputs(halves, folder, rows)
    start = time.process_time()
    remove_adapter(folder, removed)
    seconds = time.process_time() - start
    after, goes = outputs(halves, folder, rows)
    with torch.no_grad():
        parts = [halves.tokens(rows[start : start + 40]) for start in range(0, len(rows), 40)]
        base = torch.cat([halves.base(**part).last_hidden_state.sum(dim=1) for part in parts])
    same = (before == after).all(dim=1)
    kept = torch.tensor([a == b for a, b in zip(went, goes, strict=True)])
    to_base = torch.tensor([name is None for name in goes])
    mine = torch.tensor([task == removed for task in tasks])
    return {
        "removed": removed,
        "seconds to remove": seconds,
        "rows": len(rows),
        "rows that others answered": sum(name != removed for name in went),
        "of these sent elsewhere": sum(a not in (removed, b) for a, b in zip(went, goes, strict=True)),
        "rows answered by the same": int(kept.sum()),
        "of these bit-equal": int((same & kept).sum()),
        "own rows": int(mine.sum()),
        "own rows the base answers now": int((mine & to_base).sum()),
        "of these bit-equal to the base": int(((after == base).all(dim=1) & mine & to_base).sum()),
        "own rows another adapter answers now": int((mine & ~to_base).sum()),
    }


def same_tensors(one: Path, other: Path) -> bool:
    """Return whether two adapters have the same tensors, to the last bit."""
    files = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    return files[0].keys() == files[1].keys() and all(torch.equal(files[0][k], files[1][k]) for k in files[0])


def of_adapters(halves: Halves, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a forward, adding and removing, on the eight adapters of `prepare.py`."""
    rows = data_of(halves, args.data, args.runs, "codes", 0)
    sources = {task: str(adapter_folder(args.runs, "codes", 0, task)) for task in rows}
    examples = {task: parts["train"].texts[:64] for task, parts in rows.items()}
    texts = {task: parts["test"].texts[:25] for task, parts in rows.items()}
    removed, report = next(iter(sources)), {}
    options: dict[str, Any] = {"base": halves.fresh(), "tokenizer": halves.tokenizer}
    with tempfile.TemporaryDirectory() as name:
        folder, fewer, copy = (Path(name) / part for part in ("all", "fewer", "copy"))
        compose(sources, examples, folder, **options, layer=MIDDLE, max_length=LENGTH)
        others = {task: source for task, source in sources.items() if task != removed}
        own = {task: examples[task] for task in others}
        compose(others, own, fewer, **options, layer=MIDDLE, max_length=LENGTH)
        mixed = [own[number] for number in range(4) for own in texts.values()]
        report["classification"] = classification(halves, sources, folder, mixed)
        report["removal"] = exactness(halves, folder, removed, texts)
        report["removal"]["equal to never having had it"] = same_tensors(folder, fewer)
        start = time.process_time()
        add_adapter(folder, sources[removed], rows[removed]["train"].texts, uid=removed, **options)
        report["seconds to add, 320 examples"] = time.process_time() - start
        shutil.copytree(folder, copy)
        remove_adapter(copy, removed)
        report["removal"]["equal after adding and removing again"] = same_tensors(copy, fewer)
    training = json.loads((Path(sources[removed]) / "training.json").read_text())
    report["seconds to train one adapter"] = training["cpu_seconds"]
    return report


def of_language(halves: Halves, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the generation of texts."""
    rows = data_of(halves, args.data, args.runs, "codes", 0)
    four = {task: rows[task]["train"].texts[:32] for task in list(rows)[:4]}
    return {"generation": generation(args.language, four, 3)}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--language", type=Path, help="a language model: measures generation alone, beside")
    parser.add_argument("--runs", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    halves = Halves(args.backbone, LENGTH)
    report = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    part = "language" if args.language else "adapters"
    report |= {"language": of_language, "adapters": of_adapters}[part](halves, args)
    report[f"manifest of {part}"] = portable(collect())
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
