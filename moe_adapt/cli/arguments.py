"""A plain argument parser for the small commands, with the same one-line errors as the large ones."""

import argparse
from typing import Any, NoReturn

from moe_adapt.errors import UserError, did_you_mean

__all__ = ["CommandParser"]


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

    def parse(self, argv: Any) -> argparse.Namespace:
        """Parse the arguments after the sub-command's name."""
        return self.parse_args(list(argv))
