"""Train what the comparison of composed adapters compares: an adapter per task, one for all, one in sequence.

    python benchmarks/compose/prepare.py --data $MOE_ADAPT_DATA --backbone prepared/minilm --runs runs/compose

Everything is kept in ``--runs`` and not computed again: rows with their middle states, adapters in PEFT's
format.
"""

import argparse
import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any, get_args

import peft
import torch
from encoder import Cached, Halves, Settings, answers, lora_config, train
from images import GROUPS, IMAGE_SIZES, IMAGES, TRAINED, ImageHalves, load_group
from language import LANGUAGE, TASKS, LanguageHalves, load_prompts
from rates import best_rate
from tasks import READERS, Form, load

__all__ = ["adapter_folder", "all_of", "cell_folder", "chooser_of", "data_of", "halves_of", "sizes_of"]

SIZES = {"train": 320, "validation": 40, "test": 100}
EPOCHS, LANGUAGE_EPOCHS, LENGTH = 4, 3, 32
#: Learning rates that are tried on the validation rows of seed 0: `choose`; those of the language model.
RATES, LANGUAGE_RATES = (1e-3, 2e-3, 4e-3), (1e-3, 3e-3)
#: Form and tasks on which the learning rate of the single adapters is chosen.
CHOSEN_ON = ("codes", ("agnews", "sst2", "cola", "banking77"))
LANGUAGE_CHOSEN_ON = ("written_names", ("sst2",))
#: Learning rates that are tried for the baselines that see all tasks; the one that they have in writing.
WHOLE_RATES, LANGUAGE_WHOLE_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), (1e-3,)


def cell_folder(runs: Path, form: str, seed: int) -> Path:
    """Return where a form and seed keep their files."""
    return runs / f"{form}-{seed}"


def adapter_folder(runs: Path, form: str, seed: int, name: str) -> Path:
    """Return the folder of an adapter: a task's, ``joint``, ``sequential``."""
    return cell_folder(runs, form, seed) / "adapters" / name


def halves_of(args: argparse.Namespace, form: str) -> Halves:
    """Return the base of a form."""
    if form in IMAGES:
        return ImageHalves(args.backbone, args.data)
    return LanguageHalves(args.backbone) if form in LANGUAGE else Halves(args.backbone, LENGTH)


def sizes_of(form: str) -> dict[str, int]:
    """Return how many rows a task has in every split."""
    return IMAGE_SIZES if form in IMAGES else SIZES


def data_of(halves: Halves, data: Path, runs: Path, form: Any, seed: int) -> dict[str, dict[str, Cached]]:
    """Return the rows of every task by split, with their middle states."""
    path = cell_folder(runs, form, seed) / "rows.pt"
    if path.is_file():
        return torch.load(path, weights_only=False)
    found = {}
    tasks, read = (GROUPS, load_group) if form in IMAGES else (tuple(READERS), load)
    if isinstance(halves, LanguageHalves):
        tasks, read = TASKS, load_prompts(halves)
    for task in tasks:
        splits = read(data, task, form, **sizes_of(form), seed=seed)
        found[task] = {name: halves.cache(rows) for name, rows in splits.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def all_of(rows: dict[str, dict[str, Cached]], split: str) -> Cached:
    """Return the rows of all tasks in one."""
    whole = None
    for parts in rows.values():
        whole = parts[split] if whole is None else whole + parts[split]
    assert whole is not None
    return whole


def fit(halves: Halves, rank: int, rows: list[Cached], settings: Settings, seed: int, folder: Path) -> Any:
    """Train one adapter on one set of rows after the other, and save it."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(halves.fresh(), lora_config(rank))
    start = time.process_time()
    for part in rows:
        train(model, part, settings, seed)
    part_folder = folder.with_suffix(".part")
    model.save_pretrained(str(part_folder))
    measured = {"cpu_seconds": time.process_time() - start, **vars(settings)}
    (part_folder / "training.json").write_text(json.dumps(measured))
    part_folder.rename(folder)
    return model


def choose(halves: Halves, args: argparse.Namespace) -> Settings:
    """Return how single adapters are trained: the rate with the best mean on validation rows of seed 0."""
    writes = isinstance(halves, LanguageHalves)
    form, tasks = LANGUAGE_CHOSEN_ON if writes else CHOSEN_ON
    rates, epochs = (LANGUAGE_RATES, LANGUAGE_EPOCHS) if writes else (RATES, EPOCHS)
    rows = data_of(halves, args.data, args.runs, form, 0)

    def score(rate: float) -> float:
        settings, right = Settings(lr=rate, epochs=epochs, length=halves.length), []
        for task in tasks:
            torch.manual_seed(0)
            model = peft.get_peft_model(halves.fresh(), lora_config(8))
            train(model, rows[task]["train"], settings, 0)
            right.append(answers(model, rows[task]["validation"]).float().mean().item())
        return sum(right) / len(right)

    rate = best_rate(args.runs / "chosen.json", rates, score)
    return Settings(lr=rate, epochs=epochs, length=halves.length)


def chooser_of(form: str) -> str:
    """Return the form whose validation rows of seed 0 choose for methods that learn from all tasks."""
    if form in IMAGES:
        return form
    return LANGUAGE_CHOSEN_ON[0] if form in LANGUAGE else CHOSEN_ON[0]


def choose_whole(halves: Halves, args: argparse.Namespace, form: str, name: str, epochs: int) -> Settings:
    """Return how a baseline that sees all tasks is trained: the rate with the best mean over all of them."""
    form = chooser_of(form)
    rows = data_of(halves, args.data, args.runs, form, 0)
    held = all_of(rows, "validation")

    def settings(rate: float) -> Settings:
        return Settings(lr=rate, epochs=epochs, length=halves.length)

    def score(rate: float) -> float:
        folder = adapter_folder(args.runs, form, 0, f"{name}-{rate:g}")
        fit_whole(halves, rows, settings(rate), 0, name, folder)
        model = peft.PeftModel.from_pretrained(halves.fresh(), str(folder))
        return answers(model, held).float().mean().item()

    rates = LANGUAGE_WHOLE_RATES if form in LANGUAGE else WHOLE_RATES
    return settings(best_rate(args.runs / f"chosen_{name}_{form}.json", rates, score))


def fit_whole(
    halves: Halves,
    rows: dict[str, dict[str, Cached]],
    settings: Settings,
    seed: int,
    name: str,
    folder: Path,
) -> None:
    """Train a baseline that sees all tasks, ``joint`` or ``sequential``, if its folder is not there."""
    if not folder.is_dir():
        parts = [all_of(rows, "train")] if name == "joint" else [own["train"] for own in rows.values()]
        fit(halves, 8 * len(rows), parts, settings, seed, folder)


def prepare_cell(halves: Halves, args: argparse.Namespace, form: str, seed: int, single: Settings) -> None:
    """Train all adapters of a form and seed that are not there."""
    rows = data_of(halves, args.data, args.runs, form, seed)
    for task, parts in rows.items():
        folder = adapter_folder(args.runs, form, seed, task)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            fit(halves, 8, [parts["train"]], single, seed, folder)
            print(form, seed, task, time.process_time(), flush=True)
    for name in args.baselines:
        settings = choose_whole(halves, args, form, name, single.epochs)
        folder = adapter_folder(args.runs, form, seed, name)
        tried = folder.with_name(f"{name}-{settings.lr:g}")
        if tried.is_dir() and not folder.is_dir():
            shutil.copytree(tried, folder)
        fit_whole(halves, rows, settings, seed, name, folder)
        print(form, seed, name, settings.lr, time.process_time(), flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--forms", nargs="+", choices=[*get_args(Form), *IMAGES, *LANGUAGE], default=["codes"]
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        choices=["joint", "sequential"],
        default=[],
        help="adapters that see the rows of all tasks, to be trained too",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args.runs.mkdir(parents=True, exist_ok=True)
    for form in args.forms:
        halves = halves_of(args, form)
        single = TRAINED if form in IMAGES else choose(halves, args)
        for seed in args.seeds:
            prepare_cell(halves, args, form, seed, single)


if __name__ == "__main__":
    main()
