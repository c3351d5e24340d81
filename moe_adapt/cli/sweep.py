"""``moe-adapt sweep FILE --out DIR``: methods x tasks x seeds, many at a time, on Ray."""

from collections.abc import Sequence
from pathlib import Path

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.main import Interrupted
from moe_adapt.errors import UserError

__all__ = ["sweep"]


def sweep(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``sweep``.

    Raises:
        UserError: For a mistake in the arguments or the file, and at the end if trials failed.
        Interrupted: On Ctrl-C, with the advice to start it again.
    """
    options = _parser().parse(argv)
    for name in ("parallel", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")

    from rich.console import Console

    from moe_adapt.evaluation.plots._matplotlib import pyplot_figure
    from moe_adapt.training.sweep.plan import Sweep
    from moe_adapt.training.sweep.report import write_results
    from moe_adapt.training.sweep.run import Outcome, run_trials

    found = Sweep.read(options.file, options.out)
    if found.metric is not None:
        pyplot_figure(1.0, 1.0, [1.0])  # complain before the work, not after it
    options.out.mkdir(parents=True, exist_ok=True)
    console, done = Console(), []

    def report(outcome: Outcome) -> None:
        done.append(outcome)
        trial = outcome.trial
        value = (trial.metrics() or {}).get(found.metric or "")
        words = [f"{len(done)}/{len(found.trials)}", f"{trial.task}/{trial.method}/{trial.seed}"]
        words += [outcome.status, f"{outcome.seconds:.1f} s"] if outcome.seconds else [outcome.status]
        words += [] if value is None else [f"{found.metric} {value:.4f}"]
        console.print("  ".join([*words, outcome.error]).rstrip(), markup=False, highlight=False)

    try:
        outcomes = run_trials(
            found.trials, options.address, options.parallel, options.threads, options.gpus, report
        )
    except KeyboardInterrupt as interruption:
        raise Interrupted("the same command goes on where it stopped.") from interruption
    console.print("", write_results(found, outcomes, options.out), sep="\n", markup=False, highlight=False)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if failed:
        raise UserError(
            f"{failed} of {len(outcomes)} trials failed; their log.txt says why, and the same command runs "
            "them again."
        )


def _parser() -> CommandParser:
    parser = CommandParser("sweep", "Run methods x tasks x seeds, many at a time, and tabulate them.")
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="YAML with methods, tasks, seeds (see the docs)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of all runs and results"
    )
    parser.add_argument(
        "--address", help="address of a Ray cluster that shares the file system (default: local)"
    )
    parser.add_argument("--parallel", type=int, metavar="N", help="trials at a time (default: one per CPU)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPUs of a trial (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="X", help="GPUs of a trial (default: 0)")
    return parser
