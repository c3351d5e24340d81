"""Every relative link and picture of the committed Markdown leads somewhere, anchors included."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SKIPPED = {".venv", ".nox", "site", "runs", "build", "node_modules"}
_CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_TARGET = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|srcset|href)=\"([^\"]+)\"")


def committed() -> list[str]:
    """Return the Markdown files that git knows, or all of them where this is no clone."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode == 0 and listed.stdout:
        return sorted(set(listed.stdout.split()))
    found = (path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*.md"))
    return sorted(path.as_posix() for path in found if not SKIPPED & set(path.parts))


def targets(text: str) -> list[str]:
    """Return what a text links to and shows, code aside."""
    return [first or second for first, second in _TARGET.findall(_CODE.sub("", text))]


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as git hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found | set(re.findall(r'(?:id|name)="([^"]+)"', text))


def broken(page: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""
    found = []
    for target in targets(text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / name).resolve() if name else page
        inside = path.is_relative_to(REPOSITORY) and path.exists()
        if not inside or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", committed())
def test_links_and_pictures_resolve(page):
    path = REPOSITORY / page
    assert broken(path, path.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found():
    text = (
        '[a](docs/none.md) [b](#none) ![c](none.png) <img src="none.svg"> [d](docs/faq.md#none) `[e](none)`'
    )
    expected = ["docs/none.md", "#none", "none.png", "none.svg", "docs/faq.md#none"]
    assert broken(REPOSITORY / "README.md", text) == expected
