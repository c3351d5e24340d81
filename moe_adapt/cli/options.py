"""The options of a component, read from its constructor and its docstring."""

import inspect
from typing import NamedTuple

from docstring_parser import DocstringStyle, parse

__all__ = ["Option", "constructor_options"]


class Option(NamedTuple):
    """One argument of a constructor.

    Attributes:
        name: Its name.
        default: Its default as text; "required" if it has none.
        meaning: What the docstring says of it.
    """

    name: str
    default: str
    meaning: str


def constructor_options(cls: type) -> list[Option]:
    """Return the options of a class in their order, those that ``**`` hands on to its bases included."""
    found: dict[str, Option] = {}
    for base in cls.__mro__:
        own = vars(base).get("__init__")
        if own is None:
            continue
        meanings = _meanings(base)
        parameters = list(inspect.signature(own).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                option = Option(parameter.name, _default(parameter), meanings.get(parameter.name, ""))
                found.setdefault(parameter.name, option)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(found.values())


def _meanings(cls: type) -> dict[str, str]:
    described = parse(inspect.getdoc(cls) or "", DocstringStyle.GOOGLE)
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in described.params}


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "required"
    return getattr(parameter.default, "__name__", repr(parameter.default))
