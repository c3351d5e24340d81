"""Registries: a short name for every component, so that configurations and tests can find it.

A component registers itself with a decorator where it is defined; nothing else has to be edited:

>>> from moe_adapt.registry import Registry
>>> shapes = Registry("shape")
>>> @shapes.register("circle")
... class Circle:
...     def __init__(self, radius: float = 1.0) -> None:
...         self.radius = radius
>>> shapes.build({"name": "circle", "radius": 2.0}).radius
2.0
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

from moe_adapt.errors import UserError, did_you_mean

__all__ = ["Registry", "Spec"]

T = TypeVar("T")

#: How a configuration names a component: its short name, or a mapping of ``name`` and constructor arguments.
Spec = str | Mapping[str, Any]


class Registry(Generic[T]):
    """Short names for the classes of one kind.

    Args:
        kind: What the entries are, in the singular; used in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers its class under `name`.

        Raises:
            ValueError: If another class already has the name. A class defined again under its own module and
                qualified name (a reloaded module) replaces the old one.
        """

        def decorate(cls: type[T]) -> type[T]:
            old = self._classes.get(name)
            identity = (cls.__module__, cls.__qualname__)
            if old is not None and (old.__module__, old.__qualname__) != identity:
                raise ValueError(
                    f"the {self.kind} name {name!r} is taken by {old.__module__}.{old.__qualname__}"
                )
            self._classes[name] = cls
            cls.registered_name = name  # type: ignore[attr-defined]
            return cls

        return decorate

    def get(self, name: str) -> type[T]:
        """Return the class registered under `name`.

        Raises:
            UserError: If there is none; the message names the near ones.
        """
        if name not in self._classes:
            raise UserError(
                f"unknown {self.kind} {name!r}.{did_you_mean(name, self._classes)} "
                f"Known: {', '.join(sorted(self._classes))}."
            )
        return self._classes[name]

    def reference(self, name: str) -> str:
        """Return the paper of the class registered under `name`: its own attribute `reference`, or nothing.

        Raises:
            UserError: If there is no such class.
        """
        return str(vars(self.get(name)).get("reference", ""))

    def resolve(self, spec: Spec, supplied: Collection[str] = ()) -> tuple[type[T], dict[str, Any]]:
        """Return the class that `spec` names and its options, after checking that the class takes them.

        Args:
            spec: A short name, or a mapping with the key ``name`` and constructor arguments.
            supplied: Arguments that the caller of the constructor supplies and a spec must not.

        Raises:
            UserError: If the name is unknown, or an option is not one of the constructor's.
        """
        options = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in options:
            raise UserError(f"a {self.kind} is a name or a mapping with the key 'name', got {options!r}.")
        name = options.pop("name")
        cls = self.get(name)
        own = [key for key in inspect.signature(cls).parameters if key not in supplied]
        for key in options:
            if key not in own:
                raise UserError(
                    f"the {self.kind} {name!r} has no option {key!r}.{did_you_mean(key, own)} "
                    f"Its options: {', '.join(own) or 'none'}."
                )
        return cls, options

    def build(self, spec: Spec, **context: Any) -> T:
        """Construct the component that `spec` describes.

        Args:
            spec: A short name, or a mapping with the key ``name`` and constructor arguments.
            context: Arguments that the caller supplies (shapes, say); passed if the constructor takes them.

        Raises:
            UserError: If the name is unknown, or an option is not one of the constructor's.
        """
        cls, options = self.resolve(spec, supplied=context)
        accepted = inspect.signature(cls).parameters
        return cls(**{key: value for key, value in context.items() if key in accepted}, **options)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes
