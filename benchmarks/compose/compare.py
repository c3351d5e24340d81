"""Compare ways to use adapters that were trained apart, on the rows that `prepare.py` left.

    python benchmarks/compose/compare.py --data $MOE_ADAPT_DATA --backbone prepared/minilm --runs runs/compose

One file per form and seed in ``--runs`` (not computed again); `tables.py` gathers them. Routers see the
training texts of each adapter, or a few of them; the weights of merges are chosen on validation rows; test
rows choose nothing. Everything runs under bf16 autocast.
"""

import argparse
import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from encoder import Cached, Halves, answers
from prepare import SINGLE, SIZES, adapter_folder, all_of, cell_folder, data_of
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones.text import mean_over_tokens
from moe_adapt.hub.composition import compose
from moe_adapt.hub.composition.base import text_features
from moe_adapt.hub.composition.ingredients import read_all
from moe_adapt.hub.composition.merges import best_merges
from moe_adapt.manifest import collect
from moe_adapt.routing.sample import SAMPLE_ROUTERS, SampleRouter, leave_one_out
from moe_adapt.tuner import RoutedLoraConfig

Cell = dict[str, Any]


def task_means(right: Tensor, tasks: list[str]) -> dict[str, float]:
    """Return the accuracy of every task and their mean."""
    names = list(dict.fromkeys(tasks))
    own = {
        name: float(right[[i for i, task in enumerate(tasks) if task == name]].float().mean())
        for name in names
    }
    return own | {"mean": sum(own.values()) / len(own)}


def whole_model(halves: Halves, model: Any, data: Cached) -> tuple[Tensor, list[Any]]:
    """Return the answers of a whole model, and its decisions if it routes samples."""
    right, names = torch.zeros(len(data), dtype=torch.bool), [None] * len(data)
    order = sorted(range(len(data)), key=lambda i: len(data.hidden[i]))
    for start in range(0, len(order), 50):
        numbers = order[start : start + 50]
        batch = halves.tokens([data.rows[i].text for i in numbers])
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        vectors = F.normalize(mean_over_tokens(hidden.float(), batch["attention_mask"]), dim=-1)
        last = model.base_model.hooks.samples.last.get("default")
        routed = last.names() if last is not None else [None] * len(numbers)
        for place, number in enumerate(numbers):
            row = data.rows[number]
            right[number] = int((data.choices[row.candidates] @ vectors[place]).argmax()) == row.answer
            names[number] = routed[place]
    return right, names


@torch.no_grad()
def final_embeddings(halves: Halves, data: Cached) -> Tensor:
    """Return the base's own embeddings of rows, [N, d]."""
    parts = [halves.embed(data.texts[i : i + 64]) for i in range(0, len(data), 64)]
    return torch.cat(parts)


def router(name: str, features: dict[str, Tensor], seen: int, **options: Any) -> SampleRouter:
    """Return a router that saw the first `seen` examples of each task."""
    found = SAMPLE_ROUTERS.build({"name": name, **options})
    for task, own in features.items():
        found.observe(own[:seen], task)
    return found


def run_cell(halves: Halves, args: argparse.Namespace, form: Any, seed: int) -> Cell:
    """Measure everything for a form and seed."""
    rows = data_of(halves, args.data, args.runs, form, seed)
    test, held = all_of(rows, "test"), all_of(rows, "validation")
    tasks = [row.task for row in test.rows]
    held_tasks = [row.task for row in held.rows]
    sources = {task: str(adapter_folder(args.runs, form, seed, task)) for task in rows}
    cell: Cell = {"form": form, "seed": seed, "accuracy": {}, "sizes": SIZES, "training": vars(SINGLE)}
    accuracy = cell["accuracy"]

    right: dict[str, Tensor] = {"base": answers(halves.base, test)}
    held_right = {}
    for task, source in sources.items():
        model = peft.PeftModel.from_pretrained(halves.fresh(), source)
        right[task], held_right[task] = answers(model, test), answers(model, held)
    table = torch.stack([right[task] for task in sources], dim=1)
    own = torch.tensor([list(sources).index(task) for task in tasks])
    accuracy["base"] = task_means(right["base"], tasks)
    accuracy["oracle"] = task_means(table.gather(1, own[:, None]).squeeze(1), tasks)
    best = max(sources, key=lambda task: task_means(held_right[task], held_tasks)["mean"])
    accuracy["best single"] = task_means(right[best], tasks)

    middle = {task: parts["train"].features() for task, parts in rows.items()}
    few = {task: parts["train"].take(range(32)) for task, parts in rows.items()}
    last = {task: final_embeddings(halves, own) for task, own in few.items()}
    x, z = test.features(), final_embeddings(halves, test)
    names = sorted(sources)
    columns = torch.tensor([list(sources).index(task) for task in names])

    def routed(found: SampleRouter, features: Tensor) -> tuple[Tensor, Tensor]:
        chosen = columns[found.decide(features).index[:, 0]]
        return table.gather(1, chosen[:, None]).squeeze(1), chosen == own

    ways = {f"LDA, {n} texts": (router("lda", middle, n), x) for n in (8, 32, 320)}
    ways |= {f"prototype, middle, {n} texts": (router("prototype", middle, n), x) for n in (32, 320)}
    ways |= {"8 prototypes, middle, 320 texts": (router("prototype", middle, 320, count=8), x)}
    ways |= {"prototype, final, 32 texts": (router("prototype", last, 32), z)}
    ways |= {f"softmax, middle, {n} texts": (router("trained", middle, n), x) for n in (32, 320)}
    cell["found"] = {}
    for name, (found, features) in ways.items():
        answered, hit = routed(found, features)
        accuracy[name] = task_means(answered, tasks)
        cell["found"][name] = float(hit.float().mean())

    texts = {task: parts["train"].texts[:32] for task, parts in rows.items()}
    longest = SINGLE.length
    base = (halves.base, halves.tokenizer)
    by_block = {task: text_features(*base, few, longest) for task, few in texts.items()}
    cell["leave_one_out"] = {
        block: leave_one_out({task: found[block] for task, found in by_block.items()}).accuracy
        for block in next(iter(by_block.values()))
    }

    cell["removal"] = removal(router("lda", middle, 320), x, tasks, table, right["base"], list(sources))

    start = time.process_time()

    def validate(model: Any) -> float:
        return task_means(answers(model, held), held_tasks)["mean"]

    for merged in best_merges(halves.base, read_all(sources), validate):
        accuracy[f"merge {merged.kind}"] = task_means(answers(merged.model, test), tasks)
        cell.setdefault("weights", {})[merged.kind] = merged.weight
    cell["merge_seconds"] = time.process_time() - start

    examples = {task: parts["train"].texts[:32] for task, parts in rows.items()}
    for name, k in (("composed adapter, 32 texts", 1), ("composed adapter, 32 texts, soft", 0)):
        to = cell_folder(args.runs, form, seed) / f"composed-{k}"
        shutil.rmtree(to, ignore_errors=True)
        start = time.process_time()
        compose(
            sources,
            examples,
            to,
            base=halves.fresh(),
            tokenizer=halves.tokenizer,
            layer=3,
            k=k,
            abstain=0.01,
            max_length=longest,
        )
        cell[f"seconds to compose, k={k}"] = time.process_time() - start
        model = peft.PeftModel.from_pretrained(halves.fresh(), str(to)).eval()
        answered, went = whole_model(halves, model, test)
        accuracy[name] = task_means(answered, tasks)
        if k == 1:
            pairs = list(zip(tasks, went, strict=True))
            cell["routes"] = {
                task: {str(to): pairs.count((task, to)) for to in [*names, None]} for task in sources
            }
    arrow = RoutedLoraConfig(
        method="top_k", experts_from=sources, scorer="arrow", selector={"name": "top_k", "k": 1}, dropout=0.0,
        aux_losses=[],
    )  # fmt: skip
    accuracy["Arrow, one expert per token"] = task_means(
        answers(peft.get_peft_model(halves.fresh(), arrow), test), tasks
    )
    return cell


def add_joint(halves: Halves, args: argparse.Namespace, cell: Cell) -> None:
    """Add the adapters that saw the data of all tasks, at once or one after the other, if they are there."""
    form, seed = cell["form"], cell["seed"]
    for name in ("joint", "sequential"):
        folder = adapter_folder(args.runs, form, seed, name)
        if folder.is_dir() and f"{name} LoRA of rank 64" not in cell["accuracy"]:
            test = all_of(data_of(halves, args.data, args.runs, form, seed), "test")
            model = peft.PeftModel.from_pretrained(halves.fresh(), str(folder))
            right = answers(model, test)
            cell["accuracy"][f"{name} LoRA of rank 64"] = task_means(right, [row.task for row in test.rows])


def removal(
    lda: SampleRouter, x: Tensor, tasks: list[str], table: Tensor, base: Tensor, sources: list[str]
) -> dict[str, dict[str, float]]:
    """Remove every adapter in turn: what its own rows and those of the others lose."""
    before = [sources.index(str(name)) for name in lda.decide(x).names()]
    found = {}
    for gone in sources:
        less = router("lda", {}, 0)
        less.load({k: v for k, v in lda.state().items() if not k.startswith(f"{gone}/")})
        mine = torch.tensor([task == gone for task in tasks])
        went = torch.tensor([sources.index(str(name)) for name in less.decide(x).names()])
        right = table.gather(1, went[:, None]).squeeze(1)
        result = {
            "own rows": float(right[mine].float().mean()),
            "others moved": float((went != torch.tensor(before))[~mine].float().mean()),
        }
        kept = table.gather(1, torch.tensor(before)[:, None]).squeeze(1)
        result |= {"before": float(kept[mine].float().mean()), "base": float(base[mine].float().mean())}
        found[gone] = result
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", default=["codes-0", "codes-1", "codes-2"], metavar="FORM-SEED")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    halves = Halves(args.backbone, SINGLE.length)
    for name in args.cells:
        form, _, seed = name.partition("-")
        path = cell_folder(args.runs, form, int(seed)) / "cell.json"
        with torch.autocast("cpu", torch.bfloat16):
            cell = json.loads(path.read_text()) if path.is_file() else run_cell(halves, args, form, int(seed))
            add_joint(halves, args, cell)
        cell["manifest"] = cell.get("manifest") or collect()
        path.write_text(json.dumps(cell, indent=1))
        print(path, time.process_time(), flush=True)


if __name__ == "__main__":
    main()
