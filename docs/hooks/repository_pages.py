"""Pages that read well on a git host, made pages of the site.

In the repository links lead to files, pictures have a light and a dark version, and a script is a link. On
the site a link goes to the page that a file became, or is text where there is none; the theme chooses between
the two pictures; a link to a script that stands alone becomes the script.
"""

import posixpath
import re
from pathlib import Path

__all__ = ["MIRRORED", "mirrored_page", "site_page", "unreplaced"]

REPOSITORY = Path(__file__).resolve().parents[2]
#: File in the repository, outside the folder of the documentation -> page of the site.
MIRRORED = {
    "README.md": "index.md",
    "REPRODUCIBILITY.md": "reproducibility.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "benchmarks/results/README.md": "results/index.md",
    "benchmarks/results/class_incremental.md": "results/class_incremental.md",
    "benchmarks/continual_instructions/README.md": "results/continual_instructions.md",
    "benchmarks/results/drift.md": "results/drift.md",
    "benchmarks/results/compose.md": "results/compose.md",
    "benchmarks/results/mechanisms.md": "results/mechanisms.md",
    "benchmarks/results/defaults.md": "results/defaults.md",
}
#: Those of them that the site has a page of its own for.
OWN = ("README.md", "examples/README.md")
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img alt="(?P<alt>[^"]+)" src="(?P<light>[^"]+)">\s*</picture>'
)
_SCRIPT = re.compile(r"^\[`[^`]+`\]\((?P<target>[^)\s]+\.py)\)$", re.MULTILINE)
_INCLUDE = re.compile(r"-{1,2}8 ?(?:<|&lt;)")


def mirrored_page(source: str) -> str:
    """Return a file of the repository as a page of the site.

    Args:
        source: A key of `MIRRORED`.
    """
    text = (REPOSITORY / source).read_text(encoding="utf-8")
    return site_page(text, source, MIRRORED[source])


def site_page(text: str, source: str, page: str) -> str:
    """Return the Markdown of the site for a Markdown text of the repository.

    Args:
        text: The text.
        source: Its file, relative to the repository.
        page: The page it becomes, relative to the folder of the documentation.
    """
    here, folder = posixpath.dirname(source), posixpath.dirname(page)

    def script(match: re.Match[str]) -> str:
        path = REPOSITORY / posixpath.normpath(posixpath.join(here, match["target"]))
        return f"```python\n{path.read_text(encoding='utf-8').rstrip()}\n```"

    def relink(match: re.Match[str]) -> str:
        if ":" in match["target"]:
            return match[0]
        target = posixpath.normpath(posixpath.join(here, match["target"]))
        on_site = MIRRORED.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") and target.endswith(".md") else None
        )
        if on_site is None:
            return match["text"]
        return f"[{match['text']}]({posixpath.relpath(on_site, folder or '.')}{match['anchor'] or ''})"

    text = _SCRIPT.sub(script, text)
    text = _PICTURE.sub(r"![\g<alt>](\g<light>#only-light)\n![\g<alt>](\g<dark>#only-dark)", text)
    return _LINK.sub(relink, text)


def unreplaced(html: str) -> list[str]:
    """Return the marks of includes that are left in a page of the built site."""
    return _INCLUDE.findall(html)
