"""Run a recipe: every cell that is not there yet, then the table and the report."""

import shutil
import sys
from pathlib import Path
from typing import Any

from moe_adapt.drift.comparison.cells import finished, run_cell, write_json
from moe_adapt.drift.comparison.recipe import Cell, Recipe, read_recipe
from moe_adapt.drift.comparison.report import drift_report
from moe_adapt.drift.comparison.summary import METRICS, summarise
from moe_adapt.errors import UserError
from moe_adapt.files import write_file
from moe_adapt.manifest import collect, now

__all__ = ["collect_results", "compare"]

RECIPE_FILE, MANIFEST_FILE, REPORT_FILE = "recipe.yaml", "manifest.json", "report.html"


def compare(
    path: Path,
    out: Path,
    streams: tuple[str, ...] | None = None,
    methods: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    report_only: bool = False,
) -> None:
    """Run what a recipe lacks and write the report.

    Args:
        path: The recipe.
        out: Folder of the comparison; results in it are kept and not run again.
        streams: Only these.
        methods: Only these.
        seeds: Only these.
        report_only: Run nothing.

    Raises:
        UserError: If the recipe is wrong, or the folder belongs to another one.
    """
    recipe = read_recipe(path)
    chosen = list(recipe.only(streams, methods, seeds))
    missing = [] if report_only else [cell for cell in chosen if finished(cell, recipe, out) is None]
    made_with = {"started": now(), **collect()}
    if missing:
        _check_streams(missing)
        out.mkdir(parents=True, exist_ok=True)
        if path.resolve() != (out / RECIPE_FILE).resolve():
            shutil.copyfile(path, out / RECIPE_FILE)
        write_json(out / MANIFEST_FILE, made_with)
    print(f"{len(chosen) - len(missing)} of {len(chosen)} runs are there, results in {out}", flush=True)
    progress = _Progress(missing)
    with progress.bar:
        for number, cell in enumerate(missing, start=1):
            name = f"{cell.stream.name}, {cell.method.name}, seed {cell.seed}"
            result = run_cell(cell, recipe, out, made_with, progress.advance)
            progress.say(
                f"{number}/{len(missing)}  {name}: {100 * result['accuracy']:.2f} %, "
                f"{result['cpu_us_per_row']:.0f} µs per row"
            )
    results = collect_results(recipe, out)
    if not results:
        raise UserError(f"{out} holds no results of this recipe: leave --report-only out.")
    _print_table(results)
    report = drift_report(recipe.title, results, made_with, len(list(recipe.cells())))
    write_file(out / REPORT_FILE, report)
    print(f"report: {out / REPORT_FILE}")


def collect_results(recipe: Recipe, folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return stream -> method -> results by seed, of the cells that are there."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in recipe.cells():
        result = finished(cell, recipe, folder)
        if result is not None:
            found.setdefault(cell.stream.name, {}).setdefault(cell.method.name, []).append(result)
    return found


def _check_streams(cells: list[Cell]) -> None:
    """Fail before the first run, not after an hour, if a stream cannot be had or a method not be built."""
    checked = set()
    for cell in cells:
        if (cell.stream.name, cell.method.name) not in checked:
            cell.method.build(cell.stream.build(cell.seed), cell.seed)
            checked.add((cell.stream.name, cell.method.name))


class _Progress:
    """A bar on a terminal, one line per finished run everywhere."""

    def __init__(self, cells: list[Cell]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.screen = Console(stderr=True)
        self.bar = Progress(
            TextColumn("rows"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.screen,
            transient=True,
            disable=not self.screen.is_terminal,
        )
        self.task = self.bar.add_task("", total=sum(len(cell.stream.build(cell.seed)) for cell in cells))

    def advance(self, rows: int) -> None:
        """Count rows."""
        self.bar.advance(self.task, rows)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.screen.is_terminal:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)


def _print_table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    found = summarise(results, "accuracy")
    names = list(dict.fromkeys(name for methods in results.values() for name in methods))
    table = Table(title=f"prequential {METRICS['accuracy'][0]}", title_justify="left")
    table.add_column("method")
    for stream in results:
        table.add_column(stream, justify="right")
    for name in names:
        cells = [found[stream].get(name) for stream in results]
        table.add_row(name, *("-" if cell is None else f"{cell[0]:.2f}" for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
