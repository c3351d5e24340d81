"""``moe-adapt demo``: adapters trained apart in one model; ``--compare``: a mixture beside plain LoRA."""

import argparse
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from moe_adapt.cli import main as command_line
from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError

__all__ = ["main"]

#: Folder of the exported adapter, and its name in the model card.
ADAPTER = "bbc-news-dynmole"


def main(argv: Sequence[str]) -> None:
    """Run the demo, or the comparison that ``--compare`` asks for.

    Args:
        argv: The options.

    Raises:
        UserError: If an option is wrong, a data package is missing, or the folder holds something else.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: everything needed is installed
    if "--compare" in argv:
        run(compare_options(argv))
    else:
        compose_desks(compose_options(argv))


def compose_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of the demo."""
    parser = CommandParser(
        "demo",
        "Train three LoRA adapters apart on BBC news, compose them into one model that chooses by itself, "
        "compare it with the right adapter, the best single one and merges, remove one, open it again.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write (runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="draw of the articles, and of the training (0)")
    parser.add_argument("--per-class", type=int, default=30, help="training texts per topic and adapter (30)")
    parser.add_argument("--test-per-class", type=int, default=16, help="test texts likewise (16)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training texts (6)")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="instead, compare DynMoLE with plain LoRA and a linear head (--compare --help)",
    )
    return checked(parser, argv, ("per_class", "test_per_class", "epochs"))


def compare_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of the comparison."""
    parser = CommandParser(
        "demo --compare",
        "Fine-tune all-MiniLM-L6-v2 on a few BBC news articles with DynMoLE, beside plain LoRA "
        "and a linear head; draw the routing, export the adapter, open it again.",
    )
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write (runs/demo)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the data, at least 1 (3)")
    parser.add_argument("--per-class", type=int, default=8, help="training articles per class (8)")
    parser.add_argument("--test-per-class", type=int, default=80, help="test articles per class (80)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training articles (8)")
    return checked(parser, argv, ("seeds", "per_class", "test_per_class", "epochs"))


def checked(parser: CommandParser, argv: Sequence[str], counts: Sequence[str]) -> argparse.Namespace:
    """Parse the options; those in `counts` must be 1 at least."""
    options = parser.parse(argv)
    for name in counts:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def compose_desks(options: argparse.Namespace) -> None:
    """Show composition on real text; imports the training stack."""
    from rich.console import Console

    console = Console()
    started = time.perf_counter()
    console.print("[bold]moe-adapt demo[/bold]: three adapters of all-MiniLM-L6-v2 in one, no network needed")
    quiet()

    from moe_adapt.data.packages import MINILM, package_folder
    from moe_adapt.demo.adapters import Training
    from moe_adapt.demo.composition import Sizes, tell
    from moe_adapt.demo.composition_report import caveat, results_table, write_report

    sizes = Sizes(
        train=options.per_class,
        test=options.test_per_class,
        seed=options.seed,
        training=Training(epochs=options.epochs),
    )
    backbone = str(package_folder(*MINILM))
    reserve(options.out)

    def say(text: str) -> None:
        console.print(f"  {time.perf_counter() - started:5.1f} s  {text}", highlight=False)

    story = tell(backbone, options.out, sizes, say)
    seconds = time.perf_counter() - started
    write_report(story, sizes, options.out, seconds)
    console.print(results_table(story, sizes), caveat(), "", highlight=False)
    console.print(
        f"composed  {story.composed}",
        f"routes    {story.found.right_route:.1%} of the test texts went to their own adapter, "
        f"{story.found.abstained:.1%} to the base",
        f"removal   {story.removal}",
        "reopened  in a fresh process, whole and with one adapter less, equal to the last bit",
        f"report    {options.out / 'report.md'}",
        f"{seconds:.0f} seconds in all; moe-adapt demo --compare trains a mixture beside plain LoRA",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


def run(options: argparse.Namespace) -> None:
    """Compare the methods; imports the training stack."""
    from rich.console import Console

    console = Console()
    started = time.perf_counter()
    console.print("[bold]moe-adapt demo[/bold]: all-MiniLM-L6-v2 on BBC news, no network needed")
    quiet()

    from moe_adapt.data.packages import MINILM, MINILM_ID, package_folder
    from moe_adapt.demo.bbc import load_bbc_news
    from moe_adapt.demo.comparison import METHODS, Settings, run_method, write_data
    from moe_adapt.demo.progress import StepProgress
    from moe_adapt.demo.reload import reload_difference
    from moe_adapt.demo.report import conclusion, results_table, write_results
    from moe_adapt.hub.base_code import BaseCode
    from moe_adapt.hub.card import About
    from moe_adapt.hub.export import export_model

    reserve(options.out)
    rows = load_bbc_news()
    settings = Settings(
        backbone=str(package_folder(*MINILM)),
        classes=tuple(sorted({row["label"] for row in rows})),
        train_per_class=options.per_class,
        test_per_class=options.test_per_class,
        epochs=options.epochs,
    )
    console.print(f"{len(rows):,} different articles in {len(settings.classes)} classes")

    outcomes, chosen = [], None
    progress = StepProgress(console, total=settings.steps * options.seeds * len(METHODS))
    with progress.bar:
        for seed in range(options.seeds):
            data = options.out / "data" / f"seed_{seed}"
            write_data(rows, settings, seed, data)
            for method, name in METHODS.items():
                progress.describe(f"seed {seed}: {name}")
                folder = options.out / f"seed_{seed}" / method
                outcome, module = run_method(method, settings, seed, data, folder, progress)
                outcomes.append(outcome)
                console.print(
                    f"  seed {seed}  {name:<30} {100 * outcome.accuracy:5.1f} %  {outcome.seconds:5.1f} s"
                )
                if (seed, method) == (0, "dynmole"):
                    chosen = module, outcome
    assert chosen is not None
    module, outcome = chosen
    console.print(results_table(outcomes, settings), conclusion(outcomes), sep="\n")

    run_folder = Path(outcome.folder)
    arguments = {"backbone": MINILM_ID, "num_classes": len(settings.classes), "pooling": "mean"}
    about = About(
        metrics={"test/acc": outcome.accuracy, "test/f1": outcome.macro_f1},
        manifest=json.loads((run_folder / "manifest.json").read_text(encoding="utf-8")),
        base_model=MINILM_ID,
        task="text-classification",
        dataset=f"BBC news, {options.per_class} training articles per class",
        load_code=BaseCode.of_module(type(module), arguments),
    )
    report = export_model(module.model, options.out / ADAPTER, about=about)  # type: ignore[arg-type]
    batch = next(iter(module.trainer.datamodule.test_dataloader()))  # type: ignore[attr-defined]
    difference = reload_difference(module.model, batch, report.folder, settings.backbone)
    results = options.out / "results.json"
    seconds = time.perf_counter() - started
    write_results(results, outcomes, settings, report.folder, difference, seconds)
    console.print(
        f"adapter         {report}",
        f"reloaded        in a fresh process, largest difference of a logit {difference:.1e}",
        f"routing picture {run_folder / 'routing.png'}",
        f"all numbers     {results}",
        f"{seconds:.0f} seconds in all",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


def reserve(folder: Path) -> None:
    """Make room for the demo's files: an earlier demo is replaced, anything else is left alone.

    Raises:
        UserError: If the folder holds something else.
    """
    if folder.is_dir():
        own = {"data", "results.json", "report.md", "report.png", "adapters", ADAPTER}
        own |= {path.name for pattern in ("seed_*", "composed*") for path in folder.glob(pattern)}
        if not own.issuperset(path.name for path in folder.iterdir()):
            raise UserError(
                f"{folder} holds something else than an earlier demo; give another folder with --out."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def quiet() -> None:
    """Leave the console to the demo: no loading bars, no library notices."""
    import datasets
    import lightning  # noqa: F401  sets the level of its loggers when it is imported
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(command_line(["demo", *sys.argv[1:]]))
