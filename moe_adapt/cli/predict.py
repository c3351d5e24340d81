"""``moe-adapt predict RUN_OR_ADAPTER FILE|-``: answers for rows without labels.

With ``--config`` it is the trainer's own command, which takes a run's test rows.
"""

import sys
from collections.abc import Sequence

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError

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
    if options.batch_size < 1 or options.top < 1:
        raise UserError("--batch_size and --top must be at least 1.")

    from moe_adapt.serving.classify import Classifying
    from moe_adapt.serving.known import unknown_values
    from moe_adapt.serving.opening import open_model
    from moe_adapt.serving.rows import Scores, batched, open_output, read_rows, with_answer

    with open_output(options.to, options.overwrite) as write:
        model = open_model(options.source, options.base, options.checkpoint)
        if not isinstance(model, Classifying):
            raise UserError(f"{options.source} is a language model: use `moe-adapt generate` or `chat`.")
        scores, number = Scores(), 0
        strange: list[str] = []
        for batch in batched(read_rows(options.rows, model.columns[0]), options.batch_size):
            inputs = [model.inputs_of(row, number + place) for place, row in enumerate(batch)]
            domains = None if model.domain_column is None else [row.get(model.domain_column) for row in batch]
            strange += unknown_values(model.adapters[model.first], domains or [])
            for row, answer in zip(batch, model(inputs, options.top, domains=domains), strict=True):
                write(with_answer(row, number, answer.row(options.top > 1)))
                scores.add(row.get(model.label_column), answer.prediction)
                number += 1
        if not number:
            raise UserError(f"{options.rows} has no rows.")
    where = "" if options.to is None else f": {options.to}"
    print(f"{number:,} rows answered{where}", file=sys.stderr)
    if strange:
        print(strangers(strange, str(model.domain_column)), file=sys.stderr)
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
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    return parser
