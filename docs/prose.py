"""Checks the prose of README, guides and contribution texts: `python docs/prose.py`, part of `make lint`.

Two rules, for sentences that are understood at first reading: at most 30 words, and none of a short list of
words that say nothing or are no English idiom. Code and formulas count as one word, a link as its text, and a
cell of a table is a text of its own.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["LONGEST", "PHRASES", "Finding", "findings", "pages", "sentences"]

REPOSITORY = Path(__file__).resolve().parents[1]
#: Most words of a sentence.
LONGEST = 30
#: Pattern -> what to write instead.
PHRASES = {
    r"very|quite|basically|obviously|of course|actually|simply": "leave it out",
    r"rather(?! than)|somewhat|fairly|more or less|in general": "say how much, or leave it out",
    r"various|a number of|certain": "say which or how many",
    r"etc\.|and so on": "name them all, or say 'such as'",
    r"in order to": "write 'to'",
    r"utili[sz]es?|utili[sz]ing": "write 'use'",
    r"the same up to": "write 'equal except for'",
    r"none of ours": "say what it is",
    r"(?:has|have|had) not(?=[.,;:)])": "name the verb: 'did not learn', 'does not hold'",
    r"could not be had": "write 'is not available'",
}
_PATTERNS = {re.compile(rf"\b(?:{words})(?!\w)", re.IGNORECASE): advice for words, advice in PHRASES.items()}
#: Pages made by programs, and the history.
_MADE = {"docs/methods.md"}

_HIDDEN = re.compile(
    r"^ *```.*?^ *```|^---\n.*?^---\n|<!--.*?-->|<[a-z/][^>]*>|\$\$.*?\$\$", re.DOTALL | re.MULTILINE
)
_INLINE = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]*)\]\([^)]*\)(?:\{[^}]*\})?"), r"\1"),
    (re.compile(r"``.+?``|`[^`]*`|\$[^$\n]+\$"), "code"),
)
_ITEM = re.compile(r"^\s*(?:[*+-]|\d+\.)\s+|^#+ |^!!! .*$|^> ?", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])[)\"'*_]*\s+(?=[\"'(*_]*[A-Z0-9]|code\b)")
_ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|cf|vs|al|arXiv|approx)\.")


class Finding(NamedTuple):
    """A sentence that breaks a rule.

    Attributes:
        page: Its page, relative to the repository.
        line: Line where its paragraph begins.
        fault: What is wrong, and what to do.
        sentence: The sentence.
    """

    page: str
    line: int
    fault: str
    sentence: str


def pages() -> list[Path]:
    """Return the pages whose prose is checked."""
    found = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "REPRODUCIBILITY.md")]
    found += sorted((REPOSITORY / "docs").rglob("*.md")) + sorted((REPOSITORY / "examples").glob("*.md"))
    return [page for page in found if page.relative_to(REPOSITORY).as_posix() not in _MADE]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a Markdown text, and the line where each one's paragraph begins."""
    text = _HIDDEN.sub(lambda hidden: "\n" * hidden[0].count("\n"), text)
    for line, block in _blocks(text):
        for pattern, new in _INLINE:
            block = pattern.sub(new, block)
        block = _ABBREVIATIONS.sub(r"\1", " ".join(block.split()))
        for sentence in _END.split(block):
            if sentence:
                yield line, sentence


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs, list items, headings and cells of tables with their first line."""
    block: list[str] = []
    start = 1
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        is_row = line.lstrip().startswith("|")
        if not line.strip() or is_row or _ITEM.match(line):
            yield start, " ".join(block)
            block, start = [], number
        if is_row:
            yield from ((number, cell) for cell in re.split(r"(?<!\\)\|", line))
        elif line.strip():
            block.append(_ITEM.sub("", line))
            start = start if len(block) > 1 else number


def findings(page: Path) -> Iterator[Finding]:
    """Yield what is wrong in a page."""
    name = page.relative_to(REPOSITORY).as_posix()
    for line, sentence in sentences(page.read_text(encoding="utf-8")):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > LONGEST:
            yield Finding(name, line, f"{len(words)} words; at most {LONGEST}", sentence)
        for pattern, advice in _PATTERNS.items():
            if found := pattern.search(sentence):
                yield Finding(name, line, f"'{found[0]}': {advice}", sentence)


def main() -> int:
    """Print every finding; return 1 if there is one."""
    found = [finding for page in pages() for finding in findings(page)]
    for page, line, fault, sentence in found:
        print(f"{page}:{line}: {fault}: {sentence}")
    print(f"prose: {len(found)} findings")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
