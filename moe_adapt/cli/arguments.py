"""A plain argument parser for the small commands, with the same one-line errors as the large ones."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from moe_adapt.errors import UserError, did_you_mean

__all__ = ["CommandParser", "collecting"]


class _Collected(Exception):
    """A parser was handed over in the place of parsing."""


_collected: ContextVar[list["CommandParser"] | None] = ContextVar("_collected", default=None)


@contextmanager
def collecting() -> Iterator[list["CommandParser"]]:
    """Give the list into which a command called inside puts its parser; it ends there."""
    found: list[CommandParser] = []
    token = _collected.set(found)
    try:
        yield found
    except _Collected:
        pass
    finally:
        _collected.reset(token)


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser without prefix matching that raises `UserError` instead of leaving the program.

    Args:
        name: The sub-command.
        description: What it does.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"moe-adapt {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a one-line error.

        Raises:
            UserError: Always.
        """
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise UserError(f"{self.prog}: {message}.")
        word = unknown.split()[0].split("=")[0]
        raise UserError(
            f"{self.prog}: unknown option {word}.{did_you_mean(word, self._option_string_actions)}"
        )

    def parse(self, argv: Any, intermixed: bool = False) -> argparse.Namespace:
        """Parse the arguments after the sub-command's name.

        Args:
            argv: The arguments.
            intermixed: Whether options may stand between arguments of which some are optional.
        """
        found = _collected.get()
        if found is not None:
            found.append(self)
            raise _Collected
        return self.parse_intermixed_args(list(argv)) if intermixed else self.parse_args(list(argv))
