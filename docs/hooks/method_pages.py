"""The pages of all methods, and the page that compares them.

A new method gets its page by being registered.
"""

import continual_learners
import drift_learners
import routed_methods
import update_rules
from docstrings import link_papers
from page import MethodPage

__all__ = ["KINDS", "index_page", "method_pages"]

#: Kind -> its title, the heads of its table after name and summary, and the text above the table.
KINDS = {
    "routed": ("Routed LoRA", routed_methods.HEADS, routed_methods.LEAD),
    "learner": ("Continual learners", continual_learners.HEADS, continual_learners.LEAD),
    "rule": ("Rules for router updates", update_rules.HEADS, update_rules.LEAD),
    "drift": ("Learners of drift streams", drift_learners.HEADS, drift_learners.LEAD),
}

INTRODUCTION = """---
hide: [toc]
---

# Methods

Every registered method has a page, made from its code: the problem, the formula, options, configuration,
command, departures from its paper, and its rows in the committed results.
[Which one should I choose?](../faq.md#which-method-should-i-choose)"""


def method_pages() -> list[MethodPage]:
    """Return the pages of all registered methods."""
    return [
        *routed_methods.routed_methods(),
        *continual_learners.continual_learners(),
        *update_rules.update_rules(),
        *drift_learners.drift_learners(),
    ]


def index_page(pages: list[MethodPage]) -> str:
    """Return the page that compares the methods of each kind."""
    parts = [INTRODUCTION]
    for kind, (title, heads, lead) in KINDS.items():
        columns = ("method", "in one line", *heads)
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for page in pages:
            if page.kind == kind:
                cells = (f"[{page.name}]({kind}/{page.name}.md)", link_papers(page.summary), *page.facts)
                lines.append("| " + " | ".join(cells) + " |")
        parts += [f"## {title}", lead, "\n".join(lines)]
    return "\n\n".join(parts) + "\n"
