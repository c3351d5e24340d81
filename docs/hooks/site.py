"""The hook of the site: pages that are made from the code and its results, and formulas as MathML."""

from typing import Any

from maths import with_mathml
from method_pages import INDEX, KINDS, index_page, method_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from page import MethodPage
from repository_pages import MIRRORED, OWN, mirrored_page, site_page, unreplaced
from source_systems import PAGE as COVERAGE
from source_systems import coverage_page

PAGES: list[MethodPage] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the method pages and put them into the navigation, under *Methods*."""
    PAGES[:] = method_pages()
    entries: list[Any] = [INDEX]
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
    made[INDEX] = index_page(PAGES, on_site=True)
    made[COVERAGE] = site_page(coverage_page(), f"docs/{COVERAGE}", COVERAGE)
    made |= {page: mirrored_page(source) for source, page in MIRRORED.items() if source not in OWN}
    for path, text in made.items():
        committed = files.get_file_from_path(path)
        if committed is not None:
            files.remove(committed)
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Turn the links, pictures and scripts of a committed page into those of the site."""
    if page.file.generated_by is not None:
        return markdown
    return site_page(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def on_page_content(html: str, page: Page, **kwargs: Any) -> str:
    """Turn formulas into MathML; stop at an include that nothing replaced."""
    if unreplaced(html):
        raise PluginError(f"{page.file.src_uri}: an include was not replaced; link to the file instead.")
    return with_mathml(html)
