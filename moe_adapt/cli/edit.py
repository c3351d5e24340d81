"""``moe-adapt edit RUN|ADAPTER merge|prune|rehome|copy --experts N --to DIR``: fewer or more experts.

Which experts stay or are copied is decided layer by layer: by how much a trace says they are used, by a
score, or at random. The edited adapter is written as a folder; the run or adapter itself stays as it is.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError

__all__ = ["edit"]

OPERATIONS = ("merge", "prune", "rehome", "copy")
SCORES = ("use", "norm", "weight_gradient", "gradient", "adam", "random")
#: Options that only some operations read.
ONLY = {
    "threshold": ("merge", "prune", "rehome"),
    "rank": ("merge",),
    "alike": ("rehome",),
    "most": ("copy",),
    "noise": ("copy",),
    "twin_exclusive": ("copy",),
}


def edit(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``edit``.

    Raises:
        UserError: For a mistake in the arguments, a source without routed experts, or a target in use.
    """
    options = _parser().parse(argv, intermixed=True)
    _check(options)

    from moe_adapt.hub.export import export_model
    from moe_adapt.hub.folder import check_target

    check_target(options.to, options.overwrite)
    opened = _open(options)
    scores = _scores(opened, options)
    before = _counts(opened)
    errors = _apply(opened.tuner, options, scores)
    print(export_model(opened.model, options.to, about=opened.about, overwrite=options.overwrite))
    print(_told(before, _counts(opened), errors))
    print(f"train on: moe-adapt fit ... --start_from {options.to} {_same_shape(opened)}")


@dataclass
class Opened:
    """What is edited.

    Attributes:
        model: The PEFT model.
        about: What the card of the result says.
        module: The training module of a run; None for an adapter.
        run: Folder of the run; None for an adapter.
    """

    model: Any
    about: Any
    module: Any = None
    run: Path | None = None

    @property
    def tuner(self) -> Any:
        """The tuner."""
        return self.model.base_model

    @property
    def layers(self) -> list[Any]:
        """The adapted layers, in order."""
        from moe_adapt.tuner.layer import adapted_layers

        return adapted_layers(self.tuner.model)

    @property
    def config(self) -> Any:
        """The adapter's configuration."""
        return self.model.peft_config[self.model.active_adapter]


def _check(options: Namespace) -> None:
    given = {name for name in ONLY if getattr(options, name) not in (None, False)}
    for name in sorted(given):
        if options.operation not in ONLY[name]:
            raise UserError(
                f"--{name} is for {' and '.join(ONLY[name])}, not for {options.operation}; leave it out."
            )
    if (options.experts is None) == (options.threshold is None):
        raise UserError(
            "say how many experts: either --experts N or --threshold SHARE (merge, prune, rehome)."
        )
    if options.trace is not None and options.by != "use":
        raise UserError(f"--trace measures use; leave it out with --by {options.by}.")
    if options.batches < 1:
        raise UserError(f"--batches must be at least 1, got {options.batches}.")


def _open(options: Namespace) -> Opened:
    from peft import PeftModel

    from moe_adapt.runs.folder import CONFIG_FILE
    from moe_adapt.tuner import RoutedLoraConfig

    opened = _of_run(options) if (options.source / CONFIG_FILE).is_file() else _of_adapter(options)
    if not isinstance(opened.model, PeftModel) or not isinstance(opened.config, RoutedLoraConfig):
        raise UserError(f"{options.source} has no routed adapter, so there are no experts to edit.")
    if opened.config.sample_router is not None:
        raise UserError(
            f"{options.source} is a composed adapter; `moe-adapt compose --add` and `--remove` edit it."
        )
    selector = opened.config.selector
    if (selector if isinstance(selector, str) else (selector or {}).get("name")) == "keyed":
        raise UserError(
            f"the experts of {options.source} belong to the values of a column, which an edit would mix up; "
            "`moe-adapt group` finds out who can share one."
        )
    return opened


def _of_run(options: Namespace) -> Opened:
    from moe_adapt.runs.export import about_run
    from moe_adapt.runs.rebuild import load_module, read_run_config

    module: Any = load_module(options.source, options.checkpoint)
    about = about_run(options.source, module, read_run_config(options.source))
    return Opened(module.model, about, module, options.source)


def _of_adapter(options: Namespace) -> Opened:
    from moe_adapt.hub.answering import read_answering
    from moe_adapt.hub.card import About
    from moe_adapt.serving.opening import adapter_folder, open_model

    folder = adapter_folder(options.source)
    answering = read_answering(folder)
    if (folder / "tokenizer_config.json").is_file():
        answering["tokenizer"] = str(folder)
    about = About(task=answering["task"], answering=answering)
    return Opened(open_model(folder, options.base).model, about)


def _scores(opened: Opened, options: Namespace) -> dict[str, Any]:
    """Return a number per expert, [E], by site."""
    import torch

    from moe_adapt.experts.utility import expert_norms

    adapter = opened.model.active_adapter
    if options.by == "norm":
        return {layer.site: expert_norms(*layer.factors(adapter)) for layer in opened.layers}
    if options.by == "random":
        generator = torch.Generator().manual_seed(options.seed)
        counts = {layer.site: layer.specs[adapter].num_experts for layer in opened.layers}
        return {site: torch.rand(count, generator=generator) for site, count in counts.items()}
    if options.trace is not None:
        return _traced(opened, options.trace)
    if opened.run is None:
        raise UserError(
            f"{options.source} is an adapter, which has no data: give --trace DIR for --by use, or take "
            "--by norm or random."
        )
    return _measured(opened, options)


def _traced(opened: Opened, folder: Path) -> dict[str, Any]:
    from moe_adapt.evaluation.trace.file import load_trace
    from moe_adapt.evaluation.trace.use import expert_use

    found = expert_use(load_trace(folder))
    for layer in opened.layers:
        count = layer.specs[opened.model.active_adapter].num_experts
        if layer.site not in found or len(found[layer.site]) != count:
            raise UserError(
                f"the trace {folder} is not of this adapter: it has no decisions over the {count} experts of "
                f"{layer.site}; record it from the same checkpoint, without --sites."
            )
    return found


def _measured(opened: Opened, options: Namespace) -> dict[str, Any]:
    from moe_adapt.evaluation.trace.use import expert_use
    from moe_adapt.runs.rebuild import load_data
    from moe_adapt.training.expert_gradients import expert_utility
    from moe_adapt.training.tracing import record_batches, split_batches
    from moe_adapt.tuner.tracing import TraceRecorder

    batches = split_batches(load_data(options.source), options.data)
    if options.by != "use":
        return expert_utility(opened.module, batches, options.by, options.batches)
    recorder = TraceRecorder(opened.tuner, keep_probs=False)
    record_batches(opened.module, batches, recorder, options.batches)
    return expert_use(recorder.trace())


def _apply(tuner: Any, options: Namespace, scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    from moe_adapt.tuner.resize import duplicate_to, keep_above, merge_to, prune_to, rehome_to

    if options.operation == "copy":
        noise = 0.01 if options.noise is None else options.noise
        most = 3 if options.most is None else options.most
        duplicate_to(tuner, options.experts, scores, most, noise, options.twin_exclusive)
        return {}
    keep = options.experts if options.threshold is None else keep_above(scores, options.threshold)
    if options.operation == "merge":
        return merge_to(tuner, keep, scores, rank=options.rank)
    if options.operation == "rehome":
        return rehome_to(tuner, keep, scores, 0.5 if options.alike is None else options.alike)
    prune_to(tuner, keep, scores)
    return {}


def _counts(opened: Opened) -> list[int]:
    return [layer.specs[opened.model.active_adapter].num_experts for layer in opened.layers]


def _told(before: list[int], after: list[int], errors: dict[str, dict[str, float]]) -> str:
    said = f"{len(after)} layers: {_span(before)} experts each before, {_span(after)} after"
    values = [error for site in errors.values() for error in site.values()]
    if values:
        mean = sum(values) / len(values)
        said += f"; relative error of what was merged: {mean:.3f} in the mean, {max(values):.3f} at most"
    return said


def _span(counts: list[int]) -> str:
    few, many = min(counts), max(counts)
    return str(few) if few == many else f"{few} to {many}"


def _same_shape(opened: Opened) -> str:
    """Return the options that give a configuration the shape of the edited adapter."""
    counts = _counts(opened)
    words = [f"--model.tuner.num_experts {counts[0] if len(set(counts)) == 1 else counts}".replace(", ", ",")]
    if opened.config.modifiers:
        words.append(f"--model.tuner.modifiers {opened.config.modifiers}".replace("'", "").replace(", ", ","))
    return " ".join(words)


def _parser() -> CommandParser:
    parser = CommandParser(
        "edit", "Give an adapter fewer or more experts, by how much each is used, layer by layer."
    )
    parser.add_argument("source", type=Path, metavar="RUN|ADAPTER", help="folder of a run or of an adapter")
    parser.add_argument(
        "operation",
        choices=OPERATIONS,
        help="merge: the others join the most used one they are like; prune: they are dropped; rehome: "
        "dropped, and their directions join those they are like; copy: the most useful are copied",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--experts", type=int, metavar="N", help="how many experts each layer has afterwards")
    parser.add_argument(
        "--threshold", type=float, metavar="SHARE", help="keep experts with this share of their layer's use"
    )
    parser.add_argument(
        "--by",
        choices=SCORES,
        default="use",
        help="what decides: use (the default), norm of the expert, scores of its gradient, or random",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="DIR", help="measured use (default: measured over the run's own rows)"
    )
    parser.add_argument(
        "--data",
        choices=("train", "validation", "test"),
        default="train",
        help="rows of the run to measure on (default: train)",
    )
    parser.add_argument("--batches", type=int, default=50, metavar="N", help="most batches (default: 50)")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="merge: rank of merged experts (default: as it is)"
    )
    parser.add_argument(
        "--alike", type=float, metavar="COS", help="rehome: least cosine of a direction and its home (0.5)"
    )
    parser.add_argument(
        "--most", type=int, metavar="N", help="copy: most copies before the next gets one (3)"
    )
    parser.add_argument("--noise", type=float, metavar="X", help="copy: noise on the router rows (0.01)")
    parser.add_argument(
        "--twin_exclusive",
        action="store_true",
        help="copy: a token uses an expert or its copy, not both; keeps top-k routing as it was",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --by random (default: 0)")
    parser.add_argument("--checkpoint", default="best", help="best (the default), last, or a path, of a run")
    parser.add_argument("--base", metavar="DIR", help="the base model, where the adapter does not say where")
    parser.add_argument("--overwrite", action="store_true", help="replace the adapter that is in the folder")
    return parser
