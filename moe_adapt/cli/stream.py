"""``moe-adapt stream``: a learner over a stream of tasks, from a configuration.

A configuration names three things: the ``backbone``, the ``stream`` and the ``learner``, each a class and its
arguments; ``runner`` holds what concerns the run. The stream's tokenizer is the backbone unless it is given.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

import moe_adapt.learners
import moe_adapt.streams  # noqa: F401  the classes, for their bare names
from moe_adapt.backbones import Pretrained
from moe_adapt.cli.main import Interrupted
from moe_adapt.errors import UserError
from moe_adapt.learners import Learner
from moe_adapt.runs.custom import import_custom_modules, split_custom_modules
from moe_adapt.runs.folder import CONFIG_FILE, run_folder
from moe_adapt.runs.messages import unwrapped
from moe_adapt.runs.parser import ConfigByName, RoutedParser
from moe_adapt.runs.trust import sign
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream import StreamResult, StreamRunner
from moe_adapt.training.stream.files import reserve, write_file
from moe_adapt.training.stream.progress import stream_progress
from moe_adapt.training.stream.report import write_report
from moe_adapt.training.stream.state import FILE

__all__ = ["stream", "stream_parser"]

USAGE = "moe-adapt stream [--config NAME_OR_FILE ...] [--out DIR] [--resume] [--OPTION VALUE ...]"

#: Arguments of `StreamRunner` that the command sets itself.
OURS = {"folder", "seed", "callbacks", "progress"}


def stream_parser() -> RoutedParser:
    """Return the parser of the command."""
    parser = RoutedParser(
        prog="moe-adapt stream", usage=USAGE, description="Run a learner over a stream of tasks."
    )
    parser.add_argument(
        "-c",
        "--config",
        action=ConfigByName,
        help="A configuration: a path, or a short name from `moe-adapt list`. Repeat it: later ones win.",
    )
    parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
    parser.add_argument("--out", type=str | None, help="Folder of the run (default: a new one under runs/).")
    parser.add_argument(
        "--resume", action="store_true", help="Go on from the checkpoint at the last task boundary."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the run that is in the folder.")
    parser.add_argument(
        "--bounds",
        type=str | list[str],
        default=[],
        help="A finished run of the same stream (its folder), or a list of them; the report shows their "
        "curves beside this one's.",
    )
    parser.add_argument(
        "--custom_modules",
        type=list[str],
        default=[],
        help="A Python file to import first, so that its classes can be named; repeatable.",
    )
    parser.add_subclass_arguments(Pretrained, "backbone", required=True)
    parser.add_subclass_arguments(TaskStream, "stream", required=True)
    parser.add_subclass_arguments(Learner, "learner", required=True)
    parser.add_class_arguments(StreamRunner, "runner", skip=OURS)
    parser.link_arguments("backbone", "learner.init_args.backbone", apply_on="instantiate")
    parser.link_arguments(
        ("backbone", "stream"), "stream.init_args.tokenizer", compute_fn=tokenizer_or_backbone
    )
    return parser


def tokenizer_or_backbone(backbone: Namespace | None, stream: Namespace | None) -> str | None:
    """Return the stream's tokenizer: the one given, else the backbone."""
    given = stream.get("init_args.tokenizer") if stream else None
    return given or (backbone.get("init_args.backbone") if backbone else None)


def stream(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``stream``.

    Raises:
        UserError: For a mistake in the arguments or in what they describe.
        Interrupted: On Ctrl-C, with the command that goes on.
    """
    custom, rest = split_custom_modules(argv)
    import_custom_modules(custom)
    parser = stream_parser()
    options = parser.parse_args(rest)
    options.custom_modules = custom
    folder = _folder(options)
    if options.resume and options.overwrite:
        raise UserError("give --resume to continue the run or --overwrite to replace it, not both.")
    if options.resume and not (folder / FILE).is_file():
        raise UserError(f"nothing to resume: there is no checkpoint {folder / FILE}; give the run as --out.")
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if first and not options.resume:
        reserve(folder, options.overwrite)
    L.seed_everything(options.seed_everything, verbose=False)
    try:
        made = parser.instantiate_classes(options)
    except ValueError as error:
        raise unwrapped(error) from None
    progress = stream_progress()
    arguments = made.runner.as_dict() if isinstance(made.runner, Namespace) else vars(made.runner)
    runner = made.runner if isinstance(made.runner, StreamRunner) else StreamRunner(**arguments)
    runner.folder, runner.seed, runner.progress = folder, options.seed_everything, progress
    runner.cache_dir = runner.cache_dir or folder
    if first:
        _save_config(parser, options, folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            result = runner.run(made.learner, made.stream, resume=options.resume)
    except KeyboardInterrupt as interruption:
        raise Interrupted(_hint(folder)) from interruption
    if not first:
        return
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} was deleted while the run wrote into it, so parts of the run are lost; run it again."
        )
    _export_adapter(made.learner, folder / "adapter")
    bounds = [options.bounds] if isinstance(options.bounds, str) else options.bounds
    write_report(folder, result, [Path(bound) for bound in bounds])
    print(_summary(result, folder))


def _folder(options: Namespace) -> Path:
    return run_folder(options.out, None, options.learner.class_path.rsplit(".", 1)[-1])


def _save_config(parser: RoutedParser, options: Namespace, folder: Path) -> None:
    config = options.clone()
    for key in ("out", "resume", "overwrite", "config"):
        config.pop(key, None)
    content = parser.dump(config, skip_unset=False, skip_validation=True)
    write_file(folder / CONFIG_FILE, content)
    sign(folder / CONFIG_FILE)


def _export_adapter(learner: Learner, folder: Path) -> None:
    """Write the adapter, if there is one, as PEFT reads it; the head stays in the checkpoint."""
    if learner.backbone is None or not learner.backbone.adapted:
        return
    from moe_adapt.hub.folder import new_folder

    model: Any = learner.backbone.model
    with new_folder(folder, overwrite=True) as work:
        model.save_pretrained(str(work))


def _hint(folder: Path) -> str:
    if not (folder / FILE).is_file():
        return f"No task of {folder} was finished yet: start again."
    return f"resume with: moe-adapt stream --config {folder / CONFIG_FILE} --out {folder} --resume"


def _summary(result: StreamResult, folder: Path) -> str:
    metrics, costs = result.metrics(), result.costs()
    shown = [
        *(name for name in metrics if name.startswith("average_incremental_accuracy")),
        "final_accuracy",
        "final_task_mean",
        "forgetting_initial",
        "plasticity",
    ]
    lines = [f"{name:<32}{metrics[name]:.4f}" for name in shown]
    lines.append(f"{'seconds_per_task':<32}{costs['seconds_per_task']:.2f}")
    lines.append(f"{'report':<32}{folder / 'report.html'}")
    return "\n".join(lines)
