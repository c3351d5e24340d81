"""The page of all source systems: paper, parts, command, tests, verdict, and what is outside.

Its one table is ``docs/systems.yaml``. The site makes the page; `python docs/hooks/source_systems.py` prints
it. `tests/test_coverage.py` checks that parts, commands and tests exist.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from docstrings import link_papers

__all__ = ["PAGE", "TABLE", "System", "coverage_page", "systems"]

DOCS = Path(__file__).resolve().parents[1]
TABLE = DOCS / "systems.yaml"
#: The page, relative to the folder of the documentation.
PAGE = "coverage.md"

HEAD = """# Source systems

The {count} papers that this library draws on: what became of each, how it is used, which tests hold it to its
formula, and what was measured here. {built} have parts; {outside} are outside as a whole.

"Not told apart" means that the interval of the paired difference to plain LoRA with as many parameters
contains zero and is wider than one point ([tables](../benchmarks/results/README.md),
[checks](../REPRODUCIBILITY.md)). A verdict says nothing about the paper's own setting, which is most often
pretraining.

This page is made from one table, `docs/systems.yaml`, and a test checks that every part, command, test file
and row of a result in it exists."""

#: Page of the tables of a result file.
PAGES = {
    "routed_lora": "../benchmarks/results/README.md",
    "mechanisms": "../benchmarks/results/mechanisms.md",
    "class_incremental": "../benchmarks/results/class_incremental.md",
    "compose": "../benchmarks/results/compose.md",
    "continual_instructions_small": "../benchmarks/continual_instructions/README.md",
    "continual_instructions_mechanisms": "../benchmarks/continual_instructions/README.md",
    "drift_streams": "../benchmarks/results/drift.md",
}
COLUMNS = ("no.", "system", "parts", "command", "tests", "measured here", "outside, and why")


@dataclass(frozen=True)
class System:
    """An entry of the table.

    Attributes:
        number: Its number in the list of sources.
        name: Its short name.
        paper: The paper, or what it is about.
        parts: Registered parts as ``section name``, or full Python names.
        command: How it is used.
        tests: Files under ``tests``.
        verdict: What was measured.
        rows: Where, as ``file row``: a result file and a method or an experiment in it.
        outside: What is not here, and why.
    """

    number: int
    name: str
    paper: str
    parts: list[str] = field(default_factory=list)
    command: str = ""
    tests: list[str] = field(default_factory=list)
    verdict: str = ""
    rows: list[str] = field(default_factory=list)
    outside: str = ""

    def row(self) -> str:
        """Return its row of the page."""
        cells = (
            str(self.number),
            f"**{self.name}**, {link_papers(self.paper)}",
            ", ".join(f"`{part}`" for part in self.parts),
            f"`{self.command}`" if self.command else "",
            ", ".join(f"[{Path(test).stem.removeprefix('test_')}](../tests/{test})" for test in self.tests),
            self.verdict + (f" ({', '.join(map(_row_link, self.rows))})" if self.rows else ""),
            self.outside,
        )
        return "| " + " | ".join(cells) + " |"


def _row_link(row: str) -> str:
    file, _, name = row.partition(" ")
    return f"[{name.replace('_', ' ')}]({PAGES[file]})"


def systems() -> list[System]:
    """Return the table's entries."""
    entries: list[dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [System(**entry) for entry in entries]


def coverage_page() -> str:
    """Return the page in Markdown."""
    found = systems()
    built = sum(bool(system.parts) for system in found)
    head = HEAD.format(count=len(found), built=built, outside=len(found) - built)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([head, "", *lines, *(system.row() for system in found)]) + "\n"


if __name__ == "__main__":
    print(coverage_page(), end="")
