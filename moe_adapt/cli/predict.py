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

#: Most known rows that `--abstain` learns from.
MOST_KNOWN = 2000

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
    if options.abstain is not None and options.workers is not None:
        raise UserError("--abstain does not go with --workers; leave one of them out.")
    if options.known is not None and options.abstain is None:
        raise UserError("--known is for --abstain SHARE.")
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
        told: Any = model if options.abstain is None else _abstaining(model, options)
        scores, number = Scores(), 0
        strange: list[tuple[str, str]] = []
        for batch in batched(read_rows(options.rows, model.columns[0]), options.batch_size):
            for row, label, prediction, stranger in answered(told, batch, number, options.top):
                write(row)
                if not row.get("abstained"):
                    scores.add(label, prediction)
                strange += [stranger] if stranger else []
                number += 1
        if not number:
            raise UserError(f"{options.rows} has no rows.")
    _told(number, scores, options.to, strange)
    if options.abstain is not None:
        share = told.abstained / number
        print(f"{told.abstained:,} rows without an answer ({100 * share:.1f} %)", file=sys.stderr)


def _abstaining(model: Any, options: Namespace) -> Any:
    """Return the classifier with what it knows of known rows."""
    from moe_adapt.runs.folder import CONFIG_FILE
    from moe_adapt.serving.abstain import Abstaining
    from moe_adapt.serving.rows import batched, read_rows

    known = options.known
    if known is None and (Path(options.source) / CONFIG_FILE).is_file():
        known = _training_rows(Path(options.source))
    if known is None:
        raise UserError("--abstain needs rows that the model knows, such as its training rows: --known FILE.")
    told = Abstaining(model)
    rows = (row for row, _ in zip(read_rows(known, model.columns[0]), range(MOST_KNOWN), strict=False))
    numbered = enumerate(rows)
    count = told.learn(
        ([model.inputs_of(row, n) for n, row in batch] for batch in batched(numbered, options.batch_size)),
        options.abstain,
    )
    print(f"learned what is known from {count:,} rows of {known}", file=sys.stderr)
    return told


def _training_rows(run: Path) -> str | None:
    """Return the file that a run was trained on, if it is one and still there."""
    from moe_adapt.runs.rebuild import read_run_config

    given = ((read_run_config(run).get("data") or {}).get("init_args") or {}).get("train")
    return given if isinstance(given, str) and Path(given).is_file() else None


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
        "--abstain",
        type=float,
        metavar="SHARE",
        help="give no answer to rows that are too new; SHARE of the known rows may lose theirs, such as 0.05",
    )
    parser.add_argument(
        "--known", metavar="FILE", help="rows that the model knows, for --abstain (default: a run's own)"
    )
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
