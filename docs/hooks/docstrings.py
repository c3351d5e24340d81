"""Docstrings and signatures as Markdown: the text, a table of options, links to arXiv."""

import contextlib
import importlib
import inspect
import re
import sys
from typing import Any

from moe_adapt.cli.options import constructor_options

__all__ = [
    "class_text",
    "first_sentence",
    "link_papers",
    "module_text",
    "named_modules",
    "option_names",
    "options_table",
    "papers",
]

_ARXIV = re.compile(r"(?P<lead>arXiv )?\b(?P<id>\d{4}\.\d{5})\b")
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_REFERENCE = re.compile(r"^(References?):(?P<same> .*)?\n(?P<text>(?:^(?: {4}.*)?\n?)*)", re.MULTILINE)


def papers(text: str) -> list[str]:
    """Return the arXiv ids that a text names, in its order, without repetition."""
    return list(dict.fromkeys(match["id"] for match in _ARXIV.finditer(text)))


def link_papers(text: str) -> str:
    """Return the text with its arXiv ids made links."""
    return _ARXIV.sub(r"[\g<lead>\g<id>](https://arxiv.org/abs/\g<id>)", text)


def first_sentence(text: str) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(text.strip().split("\n\n")[0].split())


def _markdown(text: str) -> str:
    """Return a docstring's free text with examples fenced and references in one line."""

    def reference(match: re.Match[str]) -> str:
        inside = " ".join(((match["same"] or "") + " " + match["text"]).split())
        return f"**{match[1]}.** {inside}\n"

    text = _REFERENCE.sub(reference, text.strip() + "\n")
    return link_papers(_EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)).strip()


def module_text(cls: type) -> str:
    """Return the docstring of the module that defines a class."""
    return _markdown(inspect.cleandoc(sys.modules[cls.__module__].__doc__ or ""))


def named_modules(text: str) -> dict[str, str]:
    """Return the modules (no packages) that a text names in full, and their docstrings."""
    found = {}
    for name in dict.fromkeys(re.findall(r"`(moe_adapt(?:\.\w+)+)`", text)):
        with contextlib.suppress(ModuleNotFoundError):  # a class or a function of a module
            module = importlib.import_module(name)
            if not hasattr(module, "__path__"):
                found[name] = _markdown(inspect.cleandoc(module.__doc__ or ""))
    return found


def class_text(cls: type) -> str:
    """Return a class's docstring without its arguments, errors and example."""
    text = inspect.getdoc(cls) or ""
    return _markdown(re.split(r"^(?:Args|Raises|Attributes):\n|^>>> ", text, flags=re.MULTILINE)[0])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def option_names(cls: type) -> list[str]:
    """Return the names of a constructor's parameters, those that `**` hands on included."""
    return [option.name for option in constructor_options(cls)]


def options_table(cls: type, here: dict[str, Any] | None = None, without: tuple[str, ...] = ()) -> str:
    """Return the table of a constructor's options, or an empty text if it has none.

    Args:
        cls: The class.
        here: Values that a preset sets; they get a column if there are any.
        without: Parameters that the caller of the constructor supplies.
    """
    here = here or {}
    rows = []
    for option in constructor_options(cls):
        if option.name in without:
            continue
        default = option.default if option.default == "required" else f"`{option.default}`"
        cells = [f"`{option.name}`", default]
        if here:
            cells.append(f"`{here[option.name]!r}`" if option.name in here else "")
        rows.append("| " + " | ".join(_cell(cell) for cell in [*cells, option.meaning]) + " |")
    if not rows:
        return ""
    heads = ["option", "default", *(["in this preset"] if here else []), "meaning"]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows])
