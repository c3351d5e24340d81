"""Turn jsonargparse's messages into one sentence that names the option, what was wrong and the near names.

jsonargparse reports a mistake inside a nested option as an indented tree: each level names a key or a class,
and the leaves say what went wrong. The deepest lines are the useful ones; the keys on the way down give the
option's full name; the class on the way down gives the names that would have been accepted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

from moe_adapt.errors import did_you_mean
from moe_adapt.signatures import constructor_arguments

__all__ = ["explain", "options_of", "unwrapped"]

KEY = re.compile(r'(?:(?:Parser key|Key) "|^--)([\w.]+?)(?:\.help: |")')
CLASS = re.compile(r"class_path '([^']+)'")
UNKNOWN_KEY = re.compile(r"(?:Option|option|Key) '([^']+)'(?: is not (?:accepted|expected))?\s*$")
EXPECTED = re.compile(r"^Expected an? (.*?)(?:\. Got value: (.*))?$")
GIVEN = re.compile(r"^\s*Given value: (.*)$")
FRAME = re.compile(r"\s*(?:Given value|Subtypes|Errors:)")
NESTED = re.compile(r"NestedArg\(key='([^']*)', val='(.*)'\)")
NO_CLASS = re.compile(r"dot import path string: '?([\w.]+)")
BASES = ("lightning.LightningModule", "lightning.LightningDataModule")
MISSING = re.compile(r"the following arguments are required: (.*)$")


def explain(message: str, options: Iterable[str], classes: Mapping[str, Iterable[str]]) -> str:
    """Return a one-line version of a parser's message.

    Args:
        message: What jsonargparse said; one line or an indented tree.
        options: The parser's own option names, with dots and without leading dashes.
        classes: Option -> the names of the classes that it accepts.
    """
    options = list(options)
    if message.startswith("unrecognized arguments: "):
        word = message.removeprefix("unrecognized arguments: ").split()[0]
        if not word.startswith("-"):
            return f"unexpected argument {word!r}: options are written --name value."
        name = word.lstrip("-").split("=")[0]
        return f"unknown option --{name}.{suggest(name, options)}"
    lines = [line for line in message.splitlines() if line.strip() and "NoneType'>" not in line]
    key = ".".join(dict.fromkeys(name for line in lines for name in KEY.findall(line)))
    leaf = _deepest(lines) or [message]
    unknown = UNKNOWN_KEY.search(leaf[0])
    if unknown is not None:
        owners = CLASS.findall(message)
        name = unknown.group(1)
        if owners and owners[-1] in BASES:
            return f"{key}.{name} comes before {key}'s class: name the class in an earlier --config or flag."
        if owners and key:
            accepted = options_of(owners[-1])
            hint = suggest(name, accepted) or f" Its options: {', '.join(accepted)}."
            return f"{key}: {owners[-1].rsplit('.', 1)[-1]} has no option {name!r}.{hint}"
        return f"unknown key {name!r}.{suggest(name, options)}"
    missing = MISSING.search(leaf[0])
    if missing is not None:
        names = [
            f"{key}.{name}" if key else re.sub(r"^\w+\.", "", name) for name in missing.group(1).split(", ")
        ]
        return f"missing: {', '.join(names)}. Give it as --{names[0]} VALUE or in a --config."
    absent = NO_CLASS.search(message)
    if absent is not None and key in classes:
        name = absent.group(1)
        known = sorted(set(classes[key]))
        return f"{key}: there is no class {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
    expected = [match for line in leaf if (match := EXPECTED.match(line))]
    if expected:
        wanted = " or ".join(dict.fromkeys(_plain_type(match.group(1)) for match in expected))
        given = expected[0].group(2) or next((_given(line) for line in lines if GIVEN.match(line)), "")
        return f"{key}: expected {wanted}" + (f", got {given!r}." if given else ".")
    text = " ".join(leaf)
    return f"{key}: {text}" if key and key not in text else text


def suggest(name: str, options: Sequence[str]) -> str:
    """Return a did-you-mean for a dotted name: near its first part if that is unknown, else near the whole.

    Args:
        name: What the user wrote, such as ``trainer.max_epoch``.
        options: Dotted names that would have been accepted.
    """
    head = name.split(".")[0]
    heads = {option.split(".")[0] for option in options}
    return did_you_mean(name, options) if head in heads else did_you_mean(head, heads)


def options_of(class_path: str) -> list[str]:
    """Return the constructor arguments of a class (of its parents too where it passes ``**kwargs`` on).

    Args:
        class_path: Such as ``moe_adapt.training.modules.CausalLM``.
    """
    module, name = class_path.rsplit(".", 1)
    return constructor_arguments(getattr(import_module(module), name))


def _deepest(lines: list[str]) -> list[str]:
    useful = [line for line in lines if not FRAME.match(line)]
    depth = {line: len(line) - len(line.lstrip(" -")) for line in useful}
    most = max(depth.values(), default=0)
    return [line.strip(" -") for line in useful if depth[line] == most]


def _given(line: str) -> str:
    given = line.split("Given value: ", 1)[1]
    nested = NESTED.search(given)
    return nested.group(2) if nested else given


def _plain_type(text: str) -> str:
    text = re.sub(r"<(?:class|enum) '([\w.]+)'>", lambda match: match.group(1).rsplit(".", 1)[-1], text)
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", text)
    return f"one of {literal.group(1)}" if literal else text.replace("typing.", "")


def unwrapped(error: BaseException) -> BaseException:
    """Return what a constructor raised: jsonargparse wraps it in one or more ValueErrors of its own."""
    while type(error) is ValueError and error.__cause__ is not None:
        error = error.__cause__
    return error
