"""``moe-adapt generate`` and ``moe-adapt chat``: let a trained language model write."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError

__all__ = ["chat", "generate"]


def generate(argv: Sequence[str]) -> None:
    """Answer one prompt, or every row of a file.

    Args:
        argv: The arguments after ``generate``.

    Raises:
        UserError: For a mistake in the arguments or a row; nothing is written then.
    """
    parser = CommandParser(
        "generate", "Let a trained language model answer a prompt, or every row of a file."
    )
    _add_model(parser)
    parser.add_argument(
        "rows", nargs="?", metavar="FILE|-", help="rows with the columns of the training prompt"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="one prompt instead of a file; the answer is streamed"
    )
    parser.add_argument(
        "--to", metavar="OUT", help=".jsonl or .csv file to write (default: print JSON lines)"
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="rows at a time (default: 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    parser.add_argument(
        "--rewire",
        type=int,
        default=0,
        metavar="STEPS",
        help="fit an offset of the routing to each prompt first, in so many steps; rows then go one by one",
    )
    parser.add_argument(
        "--rewire_lr", type=float, default=0.1, metavar="X", help="size of such a step (default: 0.1)"
    )
    parser.add_argument(
        "--steer",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="prefer the experts that the trace in A uses more than that in B",
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="X", help="of --steer; below 0 is away (default: 1)"
    )
    options = parser.parse(argv, intermixed=True)
    if (options.rows is None) == (options.prompt is None):
        raise UserError("give a file of rows, or one --prompt TEXT.")
    if options.batch_size < 1:
        raise UserError("--batch_size must be at least 1.")
    if options.rewire < 0 or (options.rewire and options.steer):
        raise UserError("give --rewire STEPS (0 or more) or --steer A B.")
    sampling = _sampling(options)
    if options.prompt is not None:
        model = _open(options)
        messages = [{"role": "user", "content": options.prompt}]
        with _routing(model, options, model.chat_tokens(messages)):
            _stream(model, messages, sampling)
        return

    from moe_adapt.cli.predict import strangers
    from moe_adapt.serving.generate import Request
    from moe_adapt.serving.known import unknown_values
    from moe_adapt.serving.rows import batched, open_output, read_rows, with_answer

    number = 0
    strange: list[str] = []
    with open_output(options.to, options.overwrite) as write:
        model = _open(options)
        size = 1 if options.rewire else options.batch_size
        for batch in batched(read_rows(options.rows, "prompt"), size):
            requests = [
                Request(
                    model.row_tokens(row, number + place),
                    model.first,
                    sampling,
                    domain=row.get(model.domain_column),
                )
                for place, row in enumerate(batch)
            ]
            with _routing(model, options, requests[0].tokens):
                model.generate(requests)
            if model.domain_column is not None:
                own = model.adapters[model.first]
                strange += unknown_values(own, [request.domain for request in requests])
            for row, request in zip(batch, requests, strict=True):
                write(with_answer(row, number, {"answer": request.text}))
                number += 1
        if not number:
            raise UserError(f"{options.rows} has no rows.")
    where = "" if options.to is None else f": {options.to}"
    print(f"{number:,} rows answered{where}", file=sys.stderr)
    if strange:
        print(strangers(strange, str(model.domain_column)), file=sys.stderr)


def chat(argv: Sequence[str]) -> None:
    """Talk with a trained language model; an empty line or Ctrl-D ends it.

    Args:
        argv: The arguments after ``chat``.

    Raises:
        UserError: For a mistake in the arguments.
    """
    parser = CommandParser("chat", "Talk with a trained language model; an empty line ends it.")
    _add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the system says first")
    options = parser.parse(argv)
    sampling = _sampling(options)
    model = _open(options)
    system = options.system or model.adapters[model.first].get("system")
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not said.strip():
            return
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": _stream(model, messages, sampling)})


def _routing(model: Any, options: argparse.Namespace, tokens: Sequence[int]) -> AbstractContextManager[None]:
    """Return what changes the routing while an answer is written, as the options say."""
    if options.rewire:
        from moe_adapt.serving.rewiring import rewired

        return rewired(model, tokens, options.rewire, options.rewire_lr)
    if options.steer:
        from moe_adapt.serving.rewiring import steered

        towards, away = options.steer
        return steered(model, towards, away, options.strength)
    return nullcontext()


def _stream(model: Any, messages: list[dict[str, str]], sampling: Any) -> str:
    from moe_adapt.serving.generate import Request

    request = Request(
        model.chat_tokens(messages),
        model.first,
        sampling,
        emit=lambda piece: print(piece, end="", flush=True),
    )
    model.generate([request])
    print(flush=True)
    return request.text


def _open(options: argparse.Namespace) -> Any:
    from moe_adapt.serving.generate import Generating
    from moe_adapt.serving.opening import open_model

    model = open_model(options.source, options.base, options.checkpoint)
    if not isinstance(model, Generating):
        raise UserError(f"{options.source} is a classifier: use `moe-adapt predict`.")
    return model


def _sampling(options: argparse.Namespace) -> Any:
    from moe_adapt.serving.generate import Sampling

    if options.max_new_tokens < 1 or options.temperature < 0 or not 0 < options.top_p <= 1:
        raise UserError("--max_new_tokens is at least 1, --temperature at least 0, --top_p in (0, 1].")
    return Sampling(
        options.max_new_tokens, options.temperature, options.top_p, options.seed, tuple(options.stop or ())
    )


def _add_model(parser: CommandParser) -> None:
    parser.add_argument(
        "source", metavar="RUN_OR_ADAPTER", help="folder of a run or adapter, or user/name on the Hub"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=128, metavar="N", help="most tokens (default: 128)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is the likeliest (default: 0)"
    )
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="draw from so much probability")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the draws")
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="text that ends an answer; repeatable"
    )
    parser.add_argument(
        "--base", metavar="DIR", help="the base model, where the adapter does not say where it is"
    )
    parser.add_argument("--checkpoint", default="best", help="best (the default), last, or a path, of a run")
