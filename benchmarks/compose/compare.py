"""Compare ways to use adapters that were trained apart, on the rows that `prepare.py` left.

    python benchmarks/compose/compare.py --data $MOE_ADAPT_DATA --backbone prepared/minilm --runs runs/compose

One file per form and seed in ``--runs``, kept after each measure; `tables.py` gathers them. Routers see the
training texts of each adapter, or a few of them; the weights of merges are chosen on validation rows; test
rows choose nothing. Everything runs in float32.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from encoder import MIDDLE, UPPER, Cached, Halves, answers
from material import Cell, Material, final_embeddings, router, task_means
from prepare import LENGTH, adapter_folder, all_of, cell_folder, chooser_of, data_of, halves_of, sizes_of
from rates import best_rate
from removal import membership, removal
from torch import Tensor
from torch.nn import functional as F
from written import generated
from xlora import XLORA_RATES, learned_mixture

from moe_adapt.backbones.text import mean_over_tokens
from moe_adapt.hub.composition import compose
from moe_adapt.hub.composition.base import text_features
from moe_adapt.hub.composition.build import NEAR
from moe_adapt.hub.composition.ingredients import read_all
from moe_adapt.hub.composition.merges import Merged, best_merges
from moe_adapt.manifest import collect
from moe_adapt.routing.sample import leave_one_out
from moe_adapt.tuner import RoutedLoraConfig


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


def run_cell(halves: Halves, args: argparse.Namespace, form: Any, seed: int) -> Path:
    """Measure what is asked for and not there yet, for a form and seed; return the cell's file."""
    path = cell_folder(args.runs, form, seed) / "cell.json"
    cell: Cell = {"form": form, "seed": seed, "accuracy": {}, "sizes": sizes_of(form), "done": {}}
    if path.is_file():
        cell = json.loads(path.read_text())
    missing = [name for name in args.measures if name not in cell["done"]]
    if not missing:
        return path
    rows = data_of(halves, args.data, args.runs, form, seed)
    sources = {task: str(adapter_folder(args.runs, form, seed, task)) for task in rows}
    material = Material(halves, rows, sources, path.parent)
    for name in missing:
        start = time.process_time()
        MEASURES[name](material, cell)
        cell["done"][name] = time.process_time() - start
        cell["manifest"] = collect()
        path.write_text(json.dumps(cell, indent=1))
        print(path.parent.name, name, cell["done"][name], flush=True)
    return path


def singles(m: Material, cell: Cell) -> None:
    """Measure every adapter alone: the base, the right one, the one that is best on validation rows."""
    accuracy, held_tasks = cell["accuracy"], [row.task for row in m.held.rows]
    held, training = {}, {}
    m.right["base"] = answers(m.halves.base, m.test)
    for task, source in m.sources.items():
        model = peft.PeftModel.from_pretrained(m.halves.fresh(), source)
        m.right[task] = answers(model, m.test)
        held[task] = task_means(answers(model, m.held), held_tasks)["mean"]
        training[task] = json.loads((Path(source) / "training.json").read_text())
    accuracy["base"] = m.score(m.right["base"])
    accuracy["oracle"] = m.score(m.sent(m.tasks))
    accuracy["best single"] = m.score(m.right[max(held, key=lambda task: held[task])])
    cell["training"] = training
    torch.save(m.right, m.folder / "right.pt")


def routers(m: Material, cell: Cell) -> None:
    """Measure routers on mean states of the middle and on final embeddings; who goes where; removal."""
    x, z = m.test.features(), final_embeddings(m.halves, m.test)
    last = {task: final_embeddings(m.halves, own) for task, own in m.few.items()}
    ways = {f"LDA, {n} texts": (router("lda", m.middle, n), x) for n in (8, 32, 320)}
    ways |= {f"prototype, middle, {n} texts": (router("prototype", m.middle, n), x) for n in (32, 320)}
    ways |= {"8 prototypes, middle, 320 texts": (router("prototype", m.middle, 320, count=8), x)}
    ways |= {"prototype, final, 32 texts": (router("prototype", last, 32), z)}
    ways |= {f"softmax, middle, {n} texts": (router("trained", m.middle, n), x) for n in (32, 320)}
    cell["found"] = {}
    for name, (found, features) in ways.items():
        went = found.decide(features).names()
        cell["accuracy"][name] = m.score(m.sent(went))
        cell["found"][name] = sum(a == b for a, b in zip(went, m.tasks, strict=True)) / len(went)
        if name == "LDA, 320 texts":
            pairs = list(zip(m.tasks, went, strict=True))
            cell["routes"] = {task: {to: pairs.count((task, to)) for to in m.sources} for task in m.sources}
            cell["removal"] = removal(m, found, x)


def classes(m: Material, cell: Cell) -> None:
    """Measure LDA with a mean per class of each adapter's examples; `routers` comes first.

    The middle is given, or the block is chosen among it and those above as `compose` does it: by the training
    rows that are left out.
    """
    labels, x, size = m.labels(), m.test.features(), cell["sizes"]["train"]
    ways = {f"LDA, class means, {n} texts": (router("lda", m.middle, n, labels), x) for n in {320, size}}
    ways |= {f"LDA, {n} texts": (router("lda", m.middle, n), x) for n in {size} - {320}}
    blocks = {task: parts["train"].by_block(m.halves.base) for task, parts in m.rows.items()}
    scores = [
        leave_one_out({task: own[place] for task, own in blocks.items()}, labels=labels).accuracy
        for place in range(UPPER + 1)
    ]
    best = next(place for place, score in enumerate(scores) if score >= max(scores) - NEAR)
    own = {task: found[best] for task, found in blocks.items()}
    name = f"LDA, class means, {size} texts, block by leave-one-out"
    ways[name] = (router("lda", own, size, labels), m.test.by_block(m.halves.base)[best])
    cell["left out with class means, from the middle up"] = scores
    for task in m.sources.keys() - m.right.keys():
        m.right[task] = answers(peft.PeftModel.from_pretrained(m.halves.fresh(), m.sources[task]), m.test)
    for name, (found, features) in ways.items():
        went = found.decide(features).names()
        cell["accuracy"][name] = m.score(m.sent(went))
        cell["found"][name] = sum(a == b for a, b in zip(went, m.tasks, strict=True)) / len(went)


def layers(m: Material, cell: Cell) -> None:
    """Measure how often texts that are left out find their own adapter after every block."""
    base = (m.halves.whole(), m.halves.tokenizer)
    by_block = {task: text_features(*base, few.texts, m.halves.length) for task, few in m.few.items()}
    cell["leave_one_out"] = {
        block: leave_one_out({task: found[block] for task, found in by_block.items()}).accuracy
        for block in next(iter(by_block.values()))
    }


def merged(m: Material, cell: Cell) -> None:
    """Measure PEFT's merges of all adapters."""
    for found in merges(m.halves, m.sources, m.rows):
        cell["accuracy"][f"merge {found.kind}"] = m.score(answers(found.model, m.test))
        cell.setdefault("weights", {})[found.kind] = found.weight


def numbers(m: Material, cell: Cell) -> None:
    """Measure some of the adapters, on the rows of their tasks."""
    cell["subsets"] = {number: subset(m, dict(list(m.sources.items())[:number])) for number in (2, 4, 6)}


def composed(m: Material, cell: Cell) -> None:
    """Measure what `compose` makes: an adapter that routes by itself and leaves some texts to the base."""
    answered, went, seconds = by_itself(m, 1, 32)
    cell["accuracy"]["composed adapter, 32 texts"] = m.score(answered)
    cell["left to the base, 32 texts"] = went.count(None) / len(went)
    cell["seconds to compose, 32 texts"] = seconds


def soft(m: Material, cell: Cell) -> None:
    """Measure a composed adapter that mixes all experts by their probabilities."""
    answered, _, _ = by_itself(m, 0, 320)
    cell["accuracy"]["composed adapter, 320 texts, soft"] = m.score(answered)


def by_itself(m: Material, k: int, seen: int) -> tuple[Tensor, list[Any], float]:
    """Compose the adapters; return its answers, who gave them, and the seconds it took to compose."""
    examples = {task: parts["train"].texts[:seen] for task, parts in m.rows.items()}
    to, start = m.folder / f"composed-{k}", time.process_time()
    compose(
        m.sources,
        examples,
        to,
        base=m.halves.fresh(),
        tokenizer=m.halves.tokenizer,
        layer=MIDDLE,
        k=k,
        abstain=0.01,
        max_length=LENGTH,
        overwrite=to.is_dir(),
    )
    seconds = time.process_time() - start
    model = peft.PeftModel.from_pretrained(m.halves.fresh(), str(to)).eval()
    return *whole_model(m.halves, model, m.test), seconds


def arrow(m: Material, cell: Cell) -> None:
    """Measure Arrow: an expert per token, by the directions that adapters stretch most."""
    config = RoutedLoraConfig(
        method="top_k", experts_from=m.sources, scorer="arrow", selector={"name": "top_k", "k": 1},
        dropout=0.0, aux_losses=[],
    )  # fmt: skip
    model = peft.get_peft_model(m.halves.fresh(), config)
    cell["accuracy"]["Arrow, one expert per token"] = m.score(answers(model, m.test))


def xlora(m: Material, cell: Cell) -> None:
    """Measure PEFT's X-LoRA, whose gates learn from 32 labelled rows of each task."""
    by_gates(m, cell, 32)


def xlora_all(m: Material, cell: Cell) -> None:
    """Measure PEFT's X-LoRA, whose gates learn from all labelled training rows of each task."""
    by_gates(m, cell, 320)


def by_gates(m: Material, cell: Cell, seen: int) -> None:
    """Measure X-LoRA on so many rows of each task, at the rate that is best on validation rows of seed 0.

    The rate is chosen with 32 rows of each task.

    Raises:
        SystemExit: If the cell that chooses the rate was not measured before.
    """
    chooser = cell_folder(m.folder.parent, chooser_of(cell["form"]), 0)

    def score(rate: float) -> float:
        if m.folder != chooser:
            raise SystemExit(f"measure {chooser.name} first: it chooses the learning rate of X-LoRA.")
        return answers(learned_mixture(m.halves, m.sources, m.few, rate), m.held).float().mean().item()

    rate = best_rate(chooser.parent / f"chosen_xlora_{chooser.name}.json", XLORA_RATES, score)
    rows = {task: parts["train"].take(range(seen)) for task, parts in m.rows.items()}
    model = learned_mixture(m.halves, m.sources, rows, rate)
    cell["accuracy"][f"X-LoRA, {seen} labelled rows"] = m.score(answers(model, m.test))


def joint(m: Material, cell: Cell) -> None:
    """Measure the adapter that saw the data of all tasks at once."""
    whole(m, cell, "joint")


def sequential(m: Material, cell: Cell) -> None:
    """Measure the adapter that saw the data of all tasks, one after the other."""
    whole(m, cell, "sequential")


def whole(m: Material, cell: Cell, name: str) -> None:
    """Measure an adapter that saw the data of all tasks."""
    model = peft.PeftModel.from_pretrained(m.halves.fresh(), str(m.folder / "adapters" / name))
    cell["accuracy"][f"{name} LoRA of rank {8 * len(m.sources)}"] = m.score(answers(model, m.test))


def merges(halves: Halves, sources: dict[str, str], rows: dict[str, dict[str, Cached]]) -> Iterator[Merged]:
    """Yield PEFT's merges of some tasks' adapters, their weights chosen on validation rows of these tasks."""
    held = all_of({task: rows[task] for task in sources}, "validation")
    tasks = [row.task for row in held.rows]
    return best_merges(
        halves.base, read_all(sources), lambda model: task_means(answers(model, held), tasks)["mean"]
    )


def subset(m: Material, sources: dict[str, str]) -> dict[str, float]:
    """Return mean accuracies with some of the adapters, on the rows of their tasks."""
    test = all_of({task: m.rows[task] for task in sources}, "test")
    places = [number for number, task in enumerate(m.tasks) if task in sources]
    tasks = [m.tasks[place] for place in places]
    lda = router("lda", {task: m.middle[task] for task in sources}, 320)

    def sent(names: Sequence[Any]) -> Tensor:
        return torch.tensor([bool(m.right[str(to)][i]) for to, i in zip(names, places, strict=True)])

    found = {
        "base": m.right["base"][places],
        "oracle": sent(tasks),
        "LDA, 320 texts": sent(lda.decide(test.features()).names()),
    }
    for one in merges(m.halves, sources, m.rows):
        if one.kind == "cat":
            found["merge cat"] = answers(one.model, test)
            break
    return {name: task_means(answered, tasks)["mean"] for name, answered in found.items()}


#: What can be measured of a form and seed; ``singles`` and ``routers`` first, ``joint`` and ``sequential``
#: need ``prepare.py --baselines``. Images have no tokeniser: ``layers``, ``composed``, ``soft`` and X-LoRA
#: are for texts. ``generated`` is for the language model, ``composed`` and ``soft`` are for encoders.
MEASURES: dict[str, Callable[[Material, Cell], None]] = {
    measure.__name__: measure
    for measure in (
        singles,
        routers,
        classes,
        layers,
        membership,
        merged,
        composed,
        arrow,
        soft,
        xlora,
        xlora_all,
        numbers,
        joint,
        sequential,
        generated,
    )
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", default=["codes-0", "codes-1", "codes-2"], metavar="FORM-SEED")
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    halves: Halves | None = None
    for name in args.cells:
        form, _, seed = name.partition("-")
        halves = halves or halves_of(args, form)
        run_cell(halves, args, form, int(seed))


if __name__ == "__main__":
    main()
