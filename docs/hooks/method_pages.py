"""The pages of all methods, and the page that compares them.

A new method gets its page by being registered. The page that compares them is committed, too, with links to
files: `python docs/hooks/method_pages.py` writes it anew.
"""

from pathlib import Path

import continual_learners
import drift_learners
import routed_methods
import update_rules
from docstrings import link_papers
from page import MethodPage

__all__ = ["INDEX", "KINDS", "index_page", "method_pages"]

#: The page that compares the methods, relative to the folder of the documentation.
INDEX = "methods.md"

#: Kind -> its title, the heads of its table after name and summary, and the text above the table.
KINDS = {
    "routed": ("Routed LoRA", routed_methods.HEADS, routed_methods.LEAD),
    "learner": ("Continual learners", continual_learners.HEADS, continual_learners.LEAD),
    "rule": ("Rules for router updates", update_rules.HEADS, update_rules.LEAD),
    "drift": ("Learners of drift streams", drift_learners.HEADS, drift_learners.LEAD),
}

INTRODUCTION = """# Methods

The links below lead to the configuration or the module of a method. `moe-adapt list NAME` shows its paper and
its options. The built documentation (`make docs`) has a page for each: formula, options, configuration,
command, departures from the paper, and its rows in the committed results.
[Which one should I choose?](faq.md#which-method-should-i-choose)

This page is made from the code: `python docs/hooks/method_pages.py` writes it."""
ON_SITE = """---
hide: [toc]
---

# Methods

Every registered method has a page, made from its code: the problem, the formula, options, configuration,
command, departures from its paper, and its rows in the committed results.
[Which one should I choose?](faq.md#which-method-should-i-choose)"""


def method_pages() -> list[MethodPage]:
    """Return the pages of all registered methods."""
    return [
        *routed_methods.routed_methods(),
        *continual_learners.continual_learners(),
        *update_rules.update_rules(),
        *drift_learners.drift_learners(),
    ]


def index_page(pages: list[MethodPage], on_site: bool = False) -> str:
    """Return the page that compares the methods of each kind.

    Args:
        pages: The pages of all methods.
        on_site: Whether links go to the pages of the site instead of to files of the repository.
    """
    parts = [ON_SITE if on_site else INTRODUCTION]
    for kind, (title, heads, lead) in KINDS.items():
        columns = ("method", "in one line", *heads)
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for page in pages:
            if page.kind == kind:
                target = page.path if on_site else f"../{page.source}"
                cells = (f"[{page.name}]({target})", link_papers(page.summary), *page.facts)
                lines.append("| " + " | ".join(cells) + " |")
        parts += [f"## {title}", lead, "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / INDEX
    target.write_text(index_page(method_pages()), encoding="utf-8")
