"""The outer level of the command line: find the sub-command, import it, run it, report mistakes in one line.

Exit codes: 0 done, 1 a fault in the program (with its traceback), 2 a mistake in the input, 130 interrupted.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from moe_adapt.cli.short_help import short_help
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.extras import advice, unmet
from moe_adapt.runs.trust import trusting

__all__ = ["COMMANDS", "Command", "Interrupted", "main", "plain_warnings"]

EPILOG = """\
Every command explains itself with --help; `moe-adapt fit --model.help CausalLM` lists one model's options.
A mistake is told in one line; --debug (or MOE_ADAPT_DEBUG=1) shows the traceback as well.
A run folder from somebody else runs no code of its own; --trust lets it (read its configuration first).

Start here:
  moe-adapt list
  moe-adapt fit --config task/sequence_classification --config routed_lora/dynmole \\
      --model.backbone DIR_OR_HUB_NAME --data.train train.jsonl --out runs/first
"""


@dataclass(frozen=True)
class Command:
    """One sub-command.

    Args:
        target: Where its function lives, as ``module:function``; the function takes the arguments after the
            sub-command's name. Imported only when the command is run.
        summary: One line for ``moe-adapt --help``.
    """

    target: str
    summary: str

    def load(self) -> Callable[[Sequence[str]], None]:
        """Import and return the function."""
        module, function = self.target.split(":")
        return getattr(import_module(module), function)


COMMANDS = {
    "fit": Command("moe_adapt.cli.fit:fit", "train a model with routed LoRA experts (or resume a run)"),
    "compose": Command(
        "moe_adapt.cli.compose:compose", "put several LoRAs into one adapter that chooses per input"
    ),
    "group": Command("moe_adapt.cli.group:group", "find customers that agree, and train an expert per group"),
    "validate": Command("moe_adapt.cli.fit:validate", "evaluate a run on its validation data"),
    "test": Command("moe_adapt.cli.fit:test", "evaluate a run on its test data"),
    "predict": Command("moe_adapt.cli.predict:predict", "classify rows with a run or an adapter"),
    "generate": Command("moe_adapt.cli.generate:generate", "let a language model answer a prompt or a file"),
    "chat": Command("moe_adapt.cli.generate:chat", "talk with a trained language model"),
    "serve": Command("moe_adapt.cli.serve:serve", "answer over HTTP: chat completions, classification"),
    "compare": Command("moe_adapt.cli.compare:compare", "put finished runs beside one another"),
    "stream": Command(
        "moe_adapt.cli.stream:stream", "run a learner over a stream of tasks (or resume a run)"
    ),
    "unlearn": Command("moe_adapt.cli.unlearn:unlearn", "let a run's adapter forget some rows"),
    "export": Command("moe_adapt.cli.export:export", "write a run's adapter as a PEFT folder"),
    "edit": Command(
        "moe_adapt.cli.edit:edit", "merge, prune, re-home or copy the experts of an adapter by their use"
    ),
    "pool": Command("moe_adapt.cli.pool:pool", "choose among published adapters: add, remove, list, route"),
    "trace": Command("moe_adapt.cli.trace:trace", "record how a run routes its data, or compare two records"),
    "drift": Command("moe_adapt.cli.drift:drift", "compare learners on streams whose rule changes"),
    "sweep": Command("moe_adapt.cli.sweep:sweep", "run methods x tasks x seeds, many at a time, on Ray"),
    "list": Command(
        "moe_adapt.cli.listing:show", "list packaged configurations, learners and routing components"
    ),
    "completion": Command(
        "moe_adapt.cli.completion:completion", "print a script that completes commands in bash or zsh"
    ),
    "doctor": Command("moe_adapt.cli.doctor:doctor", "check versions, device, extras and PEFT registration"),
    "demo": Command("moe_adapt.demo.__main__:main", "train three adapters on news, compose them, remove one"),
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the advice on how to go on as its message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments after the program's name; those of the process if not given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("MOE_ADAPT_DEBUG", "0") not in ("", "0")
    trust = trusting() if "--trust" in words else nullcontext()
    words = [word for word in words if word not in ("--debug", "--trust")]
    try:
        with trust:
            _dispatch(words)
    except KeyboardInterrupt as interruption:
        print(f"interrupted. {interruption}".rstrip(), file=sys.stderr)
        return 130
    except (UserError, OSError) as mistake:
        if debug:
            raise
        print(f"error: {sentence(mistake)}", file=sys.stderr)
        return 2
    except SystemExit as end:  # --help and --print_config end this way
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def sentence(mistake: BaseException) -> str:
    """Return what a mistake says, without the traceback that a loader's worker process puts before it."""
    return str(mistake).rpartition("moe_adapt.errors.UserError: ")[2].strip()


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return
    if words[0] == "--version":
        from moe_adapt import __version__

        print(__version__)
        return
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(
            f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}."
        )
    if "-h" in rest or "--help" in rest:
        told = short_help(name)
        if told is not None:
            print(told, end="")
            return
    rest = ["--help" if word == "--help-all" else word for word in rest]
    try:
        with warnings.catch_warnings(), plain_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning|transformers")
            COMMANDS[name].load()(rest)
    except ModuleNotFoundError as missing:
        user = f"moe-adapt {name}"
        mended = advice(missing.name or "", user) or unmet(missing, user)
        if mended is None:
            raise
        raise mended from missing


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show what a user is warned of as one line, once; other warnings keep their place in the code."""
    usual: Any = warnings.formatwarning
    told: set[str] = set()

    def plain(message: Any, category: type[Warning], *place: Any) -> str:
        if category is not UserWarning:
            return usual(message, category, *place)
        text = str(message)
        seen = text in told
        told.add(text)
        return "" if seen else f"warning: {text}\n"

    warnings.formatwarning = plain  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = usual


def help_text() -> str:
    """Return what ``moe-adapt --help`` prints: every command with its line."""
    lines = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: moe-adapt COMMAND [options]", "", "commands:", *lines, "", EPILOG.rstrip()])
