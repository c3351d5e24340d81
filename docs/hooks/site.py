"""The hook of the site: pages that are made from the code and its results, and formulas as MathML."""

import sys
from pathlib import Path
from typing import Any

from maths import with_mathml
from method_pages import KINDS, index_page, method_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from page import MethodPage
from repository_pages import MIRRORED, mirrored_page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pictures"))
from draw import drawn

PAGES: list[MethodPage] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the method pages and put them into the navigation, under *Methods*."""
    PAGES[:] = method_pages()
    entries: list[Any] = ["methods/index.md"]
    for kind, (title, *_) in KINDS.items():
        entries.append({title: [{page.name: page.path} for page in PAGES if page.kind == kind]})
    assert config.nav is not None
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = entries
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files in the folder of the documentation."""
    made = {page.path: page.text for page in PAGES}
    made["methods/index.md"] = index_page(PAGES)
    made |= {target: mirrored_page(source) for source, target in MIRRORED.items()}
    made |= {f"images/{name}": svg for name, svg in drawn().items() if not name.startswith("overview")}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, **kwargs: Any) -> str:
    """Turn formulas into MathML."""
    return with_mathml(html)
