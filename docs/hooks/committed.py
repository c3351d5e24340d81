"""What is committed about a method elsewhere: rows of result tables, and entries in docs/reproducibility.

Tables are read as they were rendered. Which row is whose is known from the benchmarks' own files: they map
the label of a row to the preset or the learner that it ran.
"""

import json
import re
import runpy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

__all__ = ["Table", "drift_results", "notes", "result_sections", "row_owners"]

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
#: A kind of method and a name of one.
Name = tuple[str, str]
#: Files with tables of methods, one method per row.
TABLES = ("results/README.md", "results/class_incremental.md", "continual_instructions/README.md")


@dataclass(frozen=True)
class Table:
    """A table of a Markdown file.

    Attributes:
        file: The file, relative to the repository.
        title: The heading above it.
        head: Its two first lines.
        rows: The other lines.
    """

    file: str
    title: str
    head: tuple[str, str]
    rows: tuple[str, ...]


def tables(path: Path) -> Iterator[Table]:
    """Yield the tables of a Markdown file."""
    title, block = "", []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
            continue
        if len(block) > 2:
            yield Table(
                path.relative_to(REPOSITORY).as_posix(), title, (block[0], block[1]), tuple(block[2:])
            )
        block = []
        if line.startswith("#"):
            title = line.lstrip("# ")


@cache
def row_owners() -> dict[str, set[Name]]:
    """Return label of a row -> the presets, learners (by name or class) and update rules that it ran."""
    owners: dict[str, set[Name]] = defaultdict(set)
    routed = runpy.run_path(str(BENCHMARKS / "routed_lora" / "methods.py"))
    methods = routed["METHODS"] | routed["CONTROLS"]
    for label, options in methods.values():
        owners[label].add(("routed", options["method"]))
    # A label may have changed since a row was committed; the name of the method stays.
    report = json.loads((BENCHMARKS / "results" / "routed_lora.json").read_text(encoding="utf-8"))
    for row in report["rows"]:
        owners[row["label"]].add(("routed", methods[row["method"]][1]["method"]))
    labels = runpy.run_path(str(BENCHMARKS / "class_incremental" / "labels.py"))["LABELS"]
    for name, label in labels.items():
        config = yaml.safe_load((BENCHMARKS / "class_incremental" / "methods" / f"{name}.yaml").read_text())
        owners[label].add(("learner", config["learner"]["class_path"]))
    instructions = runpy.run_path(str(BENCHMARKS / "continual_instructions" / "methods.py"))["METHODS"]
    for label, learner, _, options in instructions.values():
        owners[label].add(("learner", learner))
        rule = options.get("router_update")
        if rule is not None:
            owners[label].add(("rule", rule if isinstance(rule, str) else rule["name"]))
    return dict(owners)


def result_sections(kind: str, names: set[str]) -> Iterator[tuple[Table, list[str]]]:
    """Yield every committed table with rows of a method, and its rows, those of the method in bold.

    Args:
        kind: ``routed``, ``learner`` or ``rule``.
        names: Names of the method: preset, registered name, class.
    """
    owners, wanted = row_owners(), {(kind, name) for name in names}
    for file in TABLES:
        for table in tables(BENCHMARKS / file):
            labels = [row.split("|")[1].strip() for row in table.rows]
            own = [bool(owners.get(label, set()) & wanted) for label in labels]
            if any(own):
                yield table, [_bold(row) if bold else row for row, bold in zip(table.rows, own, strict=True)]


def _bold(row: str) -> str:
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    return "| " + " | ".join(f"**{cell}**" if cell else "" for cell in cells) + " |"


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _subjects(lead: str) -> set[str]:
    """Return what the lead of a note is about: ``HydraLoRA, Arrow (arXiv ...)`` -> hydralora, arrow."""
    lead = re.sub(r"\([^)]*\)", "", lead)
    return {_key(part) for part in re.split(r",| and ", lead)}


def notes(kind: str, names: set[str]) -> tuple[list[list[str]], list[str]]:
    """Return what docs/reproducibility says of a method: rows of its tables of methods, and paragraphs.

    A row belongs to the methods that its first cell names, a paragraph or list item to those in its bold
    lead. Of a row come source (in some tables), what it was verified against, departures.

    Args:
        kind: ``routed``, ``learner``, ``rule`` or ``drift``; rules are called so in the first cell.
        names: Names of the method: preset, registered name, class.
    """
    pages = sorted((REPOSITORY / "docs" / "reproducibility").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    wanted = {_key(name) for name in names}
    rows = []
    for line in re.findall(r"^\| .*\|$", text, flags=re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        of_rules = "(router rule)" in cells[0]
        if len(cells) in (3, 4) and of_rules == (kind == "rule") and _subjects(cells[0]) & wanted:
            rows.append(cells[1:])
    paragraphs = [
        match[0].removeprefix("* ").replace("\n  ", "\n").strip()
        for match in re.finditer(
            r"^(?:\* )?\*\*(?P<lead>[^*]+?)\.?\*\*.*?(?=\n\n|\n\* |\Z)", text, flags=re.MULTILINE | re.DOTALL
        )
        if _subjects(match["lead"]) & wanted
    ]
    return rows, paragraphs


def drift_results(method: str) -> list[str]:
    """Return the accuracies on drift streams if a method is in that comparison.

    Args:
        method: Kind of the method in a recipe; its variants begin with it.
    """
    path = BENCHMARKS / "results" / "drift.md"
    found = [
        table
        for table in tables(path)
        if table.title.startswith("Accuracy")
        and method in (cell.strip() for cell in table.head[0].split("|"))
    ]
    if not found:
        return []
    text = path.read_text(encoding="utf-8")
    note = re.search(r"^Prequential accuracy.*$", text, flags=re.MULTILINE)
    assert note is not None
    return [note[0], *("\n".join([*table.head, *table.rows]) for table in found)]
