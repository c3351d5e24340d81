"""What an object was made with: the arguments of its constructor, and their values as JSON types."""

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any

__all__ = ["as_json", "constructor_arguments"]

_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def constructor_arguments(cls: type) -> list[str]:
    """Return the constructor's argument names, those of the parents too where it passes ``**kwargs`` on.

    >>> class Parent:
    ...     def __init__(self, lr: float = 0.1) -> None: ...
    >>> class Child(Parent):
    ...     def __init__(self, momentum: float = 0.9, **settings) -> None: ...
    >>> constructor_arguments(Child)
    ['momentum', 'lr']
    """
    names: dict[str, None] = {}
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
        names |= {p.name: None for p in parameters if p.kind not in _VARIABLE}
        if all(p.kind != inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def as_json(value: Any) -> Any:
    """Return a setting as JSON types: to compare two runs by, not to build the object again.

    Args:
        value: Numbers, text, lists, sets, mappings, dataclasses, objects with ``to_dict``; of anything else
            the name of its class, of a function its own name.

    >>> as_json({"betas": (0.9, 0.99), "optimizer": partial(dict, lr=1)})
    {'betas': [0.9, 0.99], 'optimizer': {'function': 'dict', 'lr': 1}}
    """
    if hasattr(value, "to_dict"):
        return as_json(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(vars(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(as_json, value))
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return getattr(value, "value", value)
    if isinstance(value, partial):
        return {"function": as_json(value.func), **as_json(value.keywords)}
    return getattr(value, "__qualname__", type(value).__qualname__)
