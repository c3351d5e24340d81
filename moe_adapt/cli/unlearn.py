"""``moe-adapt unlearn RUN --forget FILE --retain FILE --to DIR``: the run's adapter without some rows."""

from collections.abc import Sequence
from pathlib import Path

from moe_adapt.cli.arguments import CommandParser

__all__ = ["unlearn"]


def unlearn(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``unlearn``.

    Raises:
        UserError: For a mistake in the arguments or the rows; nothing is written then.
    """
    options = _parser().parse(argv)

    from moe_adapt.runs.unlearn import unlearn_run  # after the arguments: it takes seconds
    from moe_adapt.runs.unlearn_report import unlearning_sentence
    from moe_adapt.training.procedures import Unlearn

    procedure = Unlearn("forget", options.ascent, options.ceiling, not options.no_guard, options.max_inputs)
    report = unlearn_run(
        options.run,
        options.to,
        options.forget,
        options.retain,
        options.unseen,
        procedure,
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
        checkpoint=options.checkpoint,
        overwrite=options.overwrite,
    )
    print(unlearning_sentence(report))
    print(f"adapter: {options.to / 'adapter'}\nreport: {options.to / 'report.html'}")


def _parser() -> CommandParser:
    parser = CommandParser("unlearn", "Let a trained adapter forget some rows and keep others.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--forget", required=True, metavar="FILE", help="rows to forget")
    parser.add_argument("--retain", required=True, metavar="FILE", help="rows to keep what is known of")
    parser.add_argument(
        "--unseen", metavar="FILE", help="rows like those to forget that were not trained on, for the attack"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--epochs", type=int, default=1, metavar="N", help="passes over the rows (default: 1)"
    )
    parser.add_argument("--lr", type=float, metavar="X", help="learning rate (default: that of the run)")
    parser.add_argument(
        "--ascent", type=float, default=1.0, metavar="X", help="weight of the rows to forget (default: 1)"
    )
    parser.add_argument(
        "--ceiling", type=float, metavar="X", help="loss at which forgetting stops (default: of a guess)"
    )
    parser.add_argument("--no_guard", action="store_true", help="let routers of retained rows move")
    parser.add_argument(
        "--max_inputs", type=int, default=1024, metavar="N", help="inputs per layer to guard (default: 1024)"
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the rows (default: 0)")
    parser.add_argument("--checkpoint", default="best", help="best (the default), last, or a path")
    parser.add_argument("--overwrite", action="store_true", help="replace the adapter that is in the folder")
    return parser
