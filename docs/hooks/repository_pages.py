"""Files of the repository that are pages of the site, too: links between them are turned into the site's."""

import posixpath
import re
from pathlib import Path

__all__ = ["MIRRORED", "mirrored_page"]

REPOSITORY = Path(__file__).resolve().parents[2]
#: File in the repository -> page of the site.
MIRRORED = {
    "REPRODUCIBILITY.md": "reproducibility.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results/README.md": "results/index.md",
    "benchmarks/results/class_incremental.md": "results/class_incremental.md",
    "benchmarks/continual_instructions/README.md": "results/continual_instructions.md",
    "benchmarks/results/drift.md": "results/drift.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def mirrored_page(source: str) -> str:
    """Return a file of the repository as a page; a link to what the site does not have becomes its text.

    Args:
        source: A key of `MIRRORED`.
    """
    here, page = posixpath.dirname(source), posixpath.dirname(MIRRORED[source])

    def relink(match: re.Match[str]) -> str:
        if ":" in match["target"]:
            return match[0]
        target = posixpath.normpath(posixpath.join(here, match["target"]))
        on_site = MIRRORED.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") and target.endswith(".md") else None
        )
        if on_site is None:
            return match["text"]
        return f"[{match['text']}]({posixpath.relpath(on_site, page or '.')}{match['anchor'] or ''})"

    return _LINK.sub(relink, (REPOSITORY / source).read_text(encoding="utf-8"))
