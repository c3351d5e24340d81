"""``moe-adapt completion bash|zsh``: a script that completes commands, options and packaged configurations.

The script is made by shtab from the parsers of all commands, so it knows every option that a command takes.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from moe_adapt.cli.arguments import CommandParser, collecting
from moe_adapt.cli.pool import ACTIONS
from moe_adapt.extras import require

__all__ = ["completion", "script"]

SHELLS = ("bash", "zsh")

#: Commands whose options are those of Lightning's command line.
OF_THE_TRAINER = ("fit", "validate", "test")

#: Commands with a word of their own after their name.
WORDS = {"pool": ACTIONS}

#: Completes packaged names and files after ``--config``.
PREAMBLES = {
    "bash": '_moe_adapt_config_FILE() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": "_moe_adapt_config_FILE() {{ compadd -- {names}; _files; }}",
}

#: Words in the name of an option's value that stand for something on the disk.
PATHS = ("DIR", "FILE", "FOLDER", "RUN", "ADAPTER", "POOL", "OUT", "RECIPE")


def completion(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``completion``.

    Raises:
        UserError: For a mistake in the arguments, or without the package shtab.
    """
    parser = CommandParser("completion", "Print a script that completes commands and options in a shell.")
    parser.add_argument("shell", choices=SHELLS, help="the shell; put what is printed where it finds it")
    shell = parser.parse(argv).shell
    require("moe-adapt completion", "shtab")
    print(script(shell))


def script(shell: str) -> str:
    """Return the script.

    Args:
        shell: ``bash`` or ``zsh``.
    """
    import shtab

    from moe_adapt.cli.main import COMMANDS
    from moe_adapt.runs.config_names import packaged_configs

    root = argparse.ArgumentParser(prog="moe-adapt", add_help=False)
    root.add_argument("--help", "-h", action="store_true", help="every command with its line")
    root.add_argument("--version", action="store_true", help="the version")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary, add_help=False)
        if name in WORDS:
            words = own.add_subparsers()
            for word in WORDS[name]:
                _copy(_actions(name, [word]), words.add_parser(word, help=word, add_help=False))
        else:
            _copy(_actions(name, []), own)
    preamble = PREAMBLES[shell].format(names=" ".join(packaged_configs()))
    return shtab.complete(root, shell, preamble=preamble)


def _actions(command: str, words: Sequence[str]) -> Iterator[argparse.Action]:
    """Yield the arguments of a command, without running it."""
    from moe_adapt.cli.main import COMMANDS

    if command in OF_THE_TRAINER:
        yield from _of_the_trainer(command)
        yield from _of_classes()
    elif command == "stream":
        from moe_adapt.cli.stream import stream_parser

        yield from stream_parser()._actions
    else:
        with collecting() as found:
            COMMANDS[command].load()(words)
        yield from found[0]._actions


def _of_classes() -> Iterator[argparse.Action]:
    """Yield the options of our models and data, which the trainer's parser knows once they are chosen."""
    from moe_adapt.cli.options import constructor_options
    from moe_adapt.training import datamodules, modules

    for prefix, room in (("model", modules), ("data", datamodules)):
        for name in dict.fromkeys(
            option.name for key in room.__all__ for option in constructor_options(getattr(room, key))
        ):
            yield argparse.Action([f"--{prefix}.{name}"], dest=f"{prefix}.{name}", metavar="VALUE")


class _Made(Exception):
    """The parser is made."""


def _of_the_trainer(command: str) -> list[argparse.Action]:
    from moe_adapt.cli.fit import RoutedCLI

    class Parsers(RoutedCLI):
        """The command line, until its arguments would be parsed."""

        def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
            raise _Made

    parsers = Parsers.__new__(Parsers)
    with suppress(_Made):
        parsers.__init__([command])  # type: ignore[misc]
    return parsers._subcommand_parsers[command]._actions


def _copy(actions: Iterable[argparse.Action], to: argparse.ArgumentParser) -> None:
    """Give a parser the same arguments, with what completes their values."""
    for action in actions:
        if action.help == argparse.SUPPRESS or action.option_strings == ["--help"]:
            continue
        made = _copied(action, to)
        if "--config" in action.option_strings:
            made.complete = {shell: "_moe_adapt_config_FILE" for shell in SHELLS}  # type: ignore[attr-defined]
        elif any(word in str(action.metavar).upper() for word in PATHS):
            made.complete = {"bash": "_shtab_compgen_files", "zsh": "_files"}  # type: ignore[attr-defined]


def _copied(action: argparse.Action, to: argparse.ArgumentParser) -> argparse.Action:
    help = str(action.help or "").replace("%", "%%")
    if action.option_strings and action.nargs == 0:
        return to.add_argument(*action.option_strings, action="store_true", dest=action.dest, help=help)
    options: dict[str, Any] = {"help": help, "choices": action.choices, "nargs": action.nargs}
    if action.option_strings:
        return to.add_argument(*action.option_strings, dest=action.dest, **options)
    return to.add_argument(action.dest, **options)
