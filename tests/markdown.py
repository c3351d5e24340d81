"""The code blocks of the documentation, and a place where they can run: tiny stand-ins for models and data.

A block with the comment ``<!-- test -->`` on the line before its fence is run by `tests/test_docs.py`: Python
blocks of one page one after the other in one namespace, ``moe-adapt`` commands as they are written. A block
whose first line is a comment with a file name (``# min_p.yaml``) is the content of that file.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.training.tiny import tiny_bert, tiny_llama

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]
)

#: Models that the documentation names, and what builds the one that tests use instead.
MODELS = {
    "minilm": tiny_bert,
    "sentence-transformers/all-MiniLM-L6-v2": tiny_bert,
    "HuggingFaceTB/SmolLM2-135M-Instruct": tiny_llama,
}

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|ya?ml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page it is on, relative to the repository.
        line: Line of its fence.
        language: The fence's language.
        text: Its content.
        marked: Whether it is to be run.
    """

    page: str
    line: int
    language: str
    text: str
    marked: bool

    @property
    def file(self) -> str | None:
        """Name of the file that it shows, if it says so."""
        found = _FILE.match(self.text)
        return found and found.group(1)

    def commands(self) -> list[list[str]]:
        """The words of every ``moe-adapt`` command in it, without the program's name."""
        if self.language not in ("bash", "console", "sh"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
        return [words[1:] for words in split if words and words[0] == "moe-adapt"]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    source = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(source):
        lead = match.group("indent")
        text = "".join(line.removeprefix(lead) for line in match.group("text").splitlines(keepends=True))
        before = source[: match.start()]
        marked = before.rstrip(" \n").endswith("<!-- test -->")
        name = page.relative_to(REPOSITORY).as_posix()
        found.append(Block(name, before.count("\n") + 1, match.group("language"), text, marked))
    return found


def furnish(folder: Path, page: list[Block]) -> None:
    """Write what the documentation takes for granted: data, tiny models, the files that the page shows."""
    models = folder / "models"
    for name, build in MODELS.items():
        build(models / name.replace("/", "--"))
    (folder / "data").mkdir()
    colours = ["red", "green", "blue"]
    for split, count in {"train": 24, "validation": 6, "test": 6}.items():
        texts = [{"text": f"a {colours[i % 3]} thing, {i}", "label": colours[i % 3]} for i in range(count)]
        write_rows(folder / "data" / f"{split}.jsonl", texts)
        questions = [
            {"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(count)
        ]
        write_rows(folder / "data" / f"questions_{split}.jsonl", questions)
    for block in page:
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def with_stand_ins(text: str) -> str:
    """Return `text` with the models' names replaced by those of the folders that `furnish` wrote."""
    for name in MODELS:
        text = re.sub(rf"(?<![\w/-]){name}(?![\w/-])", f"models/{name.replace('/', '--')}", text)
    return text
