"""A page of a method, and what the pages of every kind are put together from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import committed
from docstrings import link_papers, module_text, options_table, papers

from moe_adapt.runs.config_names import packaged_configs

__all__ = [
    "INSTRUCTIONS",
    "LANGUAGE_MODEL",
    "MethodPage",
    "configuration",
    "evidence",
    "linked_papers",
    "module_file",
    "part",
    "shell",
]

LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: Folder of instructions that the commands name.
INSTRUCTIONS = "data/olora_cl_benchmark"

EVIDENCE = """The rows of this method are in bold. How the tables came about, and what they do not show, is in
[Reproducibility](../../reproducibility.md)."""


@dataclass(frozen=True)
class MethodPage:
    """A page.

    Attributes:
        kind: ``routed``, ``learner``, ``rule`` or ``drift``.
        name: The method's name in configurations, or of its class.
        summary: What it is, in one line.
        facts: Cells of its row in the table of methods, after name and summary.
        parts: What follows title and summary, in Markdown.
        source: Its file in the repository: the configuration, or the module of its class.
    """

    kind: str
    name: str
    summary: str
    facts: tuple[str, ...]
    parts: tuple[str, ...]
    source: str

    @property
    def path(self) -> str:
        """The page's file, relative to the folder of the documentation."""
        return f"methods/{self.kind}/{self.name}.md"

    @property
    def text(self) -> str:
        """The page in Markdown."""
        lead = f"**{link_papers(self.summary)}.**"
        return "\n\n".join([f"# {self.name}", lead, *(part for part in self.parts if part)]) + "\n"


def shell(*lines: str) -> str:
    """Return a command over several lines in a code block."""
    return "```bash\n" + " \\\n    ".join(lines) + "\n```"


def configuration(name: str) -> str:
    """Return a packaged configuration in a code block."""
    return f"```yaml\n{packaged_configs()[name].read_text(encoding='utf-8').rstrip()}\n```"


def module_file(cls: type) -> str:
    """Return the file of a class, relative to the repository."""
    return cls.__module__.replace(".", "/") + ".py"


def linked_papers(text: str) -> str:
    """Return links to the papers that a text names."""
    return ", ".join(link_papers(paper) for paper in papers(text))


def part(title: str, cls: type, here: dict[str, Any], without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the section on a component: its module's docstring and its options.

    Args:
        title: Heading.
        cls: Its class.
        here: The options that the preset sets.
        without: Parameters that are no options.
    """
    yield f"### {title}"
    yield module_text(cls)
    yield options_table(cls, here, without)


def evidence(kind: str, names: set[str]) -> Iterator[str]:
    """Yield the sections on checks, departures and committed results, as far as there are any.

    Args:
        kind: Kind of the method.
        names: Its names: preset, registered name, class, configurations.
    """
    rows, paragraphs = committed.notes(kind, names)
    if rows or paragraphs:
        yield "## Checks and departures"
        for row in rows:
            entries = zip(("Source", "Verified against", "Departures")[-len(row) :], row, strict=True)
            yield link_papers("\n".join(f"* **{name}:** {text}" for name, text in entries))
        yield from (link_papers(paragraph) for paragraph in paragraphs)
    sections = list(committed.result_sections(kind, names))
    if sections:
        yield "## Committed results"
        yield EVIDENCE
        for table, lines in sections:
            yield f"### {table.title}"
            yield "\n".join([*table.head, *lines])
