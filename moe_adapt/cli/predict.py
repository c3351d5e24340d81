"""``moe-adapt predict RUN_OR_ADAPTER FILE|-``: answers for rows without labels.

With ``--config`` it is the trainer's own command, which takes a run's test rows.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError
from moe_adapt.extras import require

__all__ = ["predict"]

#: Options of the trainer's command, which is older than this one.
TRAINERS = ("-c", "--config", "--model", "--data", "--print_config")


def predict(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``predict``.

    Raises:
        UserError: For a mistake in the arguments or a row; nothing is written then.
    """
    if any(word.split("=")[0].split(".")[0] in TRAINERS for word in argv):
        from moe_adapt.cli.fit import predict as of_the_trainer

        of_the_trainer(argv)
        return
    options = _parser().parse(argv)
    for name in ("batch_size", "top", "workers", "shard_rows"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1.")
    if options.workers is not None:
        _by_shards(options)
        return

    from moe_adapt.serving.classify import Classifying
    from moe_adapt.serving.opening import open_model
    from moe_adapt.serving.rows import Scores, answered, batched, open_output, read_rows

    with open_output(options.to, options.overwrite) as write:
        model = open_model(options.source, options.base, options.checkpoint)
        if not isinstance(model, Classifying):
            raise UserError(f"{options.source} is a language model: use `moe-adapt generate` or `chat`.")
        scores, number = Scores(), 0
        strange: list[tuple[str, str]] = []
        for batch in batched(read_rows(options.rows, model.columns[0]), options.batch_size):
            for row, label, prediction, stranger in answered(model, batch, number, options.top):
                write(row)
                scores.add(label, prediction)
                strange += [stranger] if stranger else []
                number += 1
        if not number:
            raise UserError(f"{options.rows} has no rows.")
    _told(number, scores, options.to, strange)


def _by_shards(options: Namespace) -> None:
    """Answer a large file in parts, with one process or several."""
    if options.to is None or options.rows == "-":
        raise UserError("--workers needs a file of rows, and --to FILE for the answers.")
    if options.workers > 1 or options.address is not None:
        require("moe-adapt predict --workers", "ray")

    from moe_adapt.serving.shards import Job, finish, prepare
    from moe_adapt.serving.workers import run_here, run_on_ray

    job = Job(
        options.source,
        str(Path(options.rows).resolve()),
        str(Path(options.to).resolve()),
        options.base,
        options.checkpoint,
        options.batch_size,
        options.top,
        -(-options.shard_rows // options.batch_size) * options.batch_size,
    )
    job, shards = prepare(job, options.overwrite)

    def say(done: int) -> None:
        print(f"shard {done} of {len(shards)}", file=sys.stderr, flush=True)

    if options.workers == 1 and options.address is None:
        run_here(job, shards, say)
    else:
        run_on_ray(job, shards, options.workers, options.address, options.gpus, say)
    number, scores, strange = finish(job)
    _told(number, scores, options.to, strange)


def _told(number: int, scores: Any, to: str | None, strange: Sequence[tuple[str, str]]) -> None:
    print(f"{number:,} rows answered{'' if to is None else f': {to}'}", file=sys.stderr)
    if strange:
        print(strangers([value for _, value in strange], strange[0][0]), file=sys.stderr)
    if str(scores):
        print(scores, file=sys.stderr)


def strangers(values: Sequence[str], column: str) -> str:
    """Return the sentence about rows that no expert of their own answers.

    Args:
        values: Their values of the column, one for each row.
        column: The column that says whose a row is.
    """
    few = list(dict.fromkeys(values))
    named = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
    return f"{len(values):,} rows have no {column} that was trained ({named}); what all share answered them"


def _parser() -> CommandParser:
    parser = CommandParser("predict", "Classify rows with a trained model; no labels needed.")
    parser.add_argument(
        "source", metavar="RUN_OR_ADAPTER", help="folder of a run or adapter, or user/name on the Hub"
    )
    parser.add_argument(
        "rows", metavar="FILE|-", help="rows as JSONL, CSV, TSV ...; - reads JSON or texts, a line each"
    )
    parser.add_argument(
        "--to", metavar="OUT", help=".jsonl or .csv file to write (default: print JSON lines)"
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="name the K most probable classes (default: 1)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="rows per forward (default: 32)"
    )
    parser.add_argument(
        "--base", metavar="DIR", help="the base model, where the adapter does not say where it is"
    )
    parser.add_argument("--checkpoint", default="best", help="best (the default), last, or a path, of a run")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="answer a large file in shards, with N processes on Ray (1 needs no Ray); a killed run goes on",
    )
    parser.add_argument(
        "--shard_rows", type=int, default=4096, metavar="N", help="rows of a shard (default: 4096)"
    )
    parser.add_argument("--address", help="address of a Ray cluster that shares the file system")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="X", help="GPUs of a worker (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    return parser
