"""``moe-adapt fit | validate | test | predict``: Lightning's command line with our rules.

What differs from a plain `LightningCLI`:

* options are never completed from a prefix, mistakes are one line, configurations have short names;
* the seed is an integer; a checkpoint's hyper-parameters are never merged over the command line;
* ``--out`` is the run's folder; ``--resume`` goes on from its last checkpoint; ``--overwrite`` replaces it;
  ``--start_from`` begins with the weights of another adapter;
* without ``max_epochs``, ``max_steps`` or ``max_time`` a run has 3 epochs, not 1,000;
* ``data.tokenizer`` is ``model.backbone`` unless it is given;
* ``model.num_classes``, if not given, is asked of the data (after ``prepare_data`` and ``setup("fit")``) and
  saved with the configuration; if given, the data is compared with it when the run starts.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import moe_adapt.training.datamodules
import moe_adapt.training.modules
import moe_adapt.training.procedures  # noqa: F401  the classes, for their bare names
from moe_adapt.cli import defaults
from moe_adapt.cli.baseline import Baseline, check_baseline, train_baseline
from moe_adapt.cli.ending import end_fit, end_test, keep_test
from moe_adapt.cli.keyed import count_keys, options_of_key, split_key
from moe_adapt.cli.main import Interrupted
from moe_adapt.cli.run_config import CheckClasses, SaveRunConfig
from moe_adapt.errors import UserError
from moe_adapt.processes import is_of_a_lost_process
from moe_adapt.runs.custom import import_custom_modules, split_custom_modules
from moe_adapt.runs.folder import (
    check_unfinished,
    evaluation_checkpoint,
    own_folder,
    resume_checkpoint,
    resume_hint,
    run_folder,
)
from moe_adapt.runs.messages import unwrapped
from moe_adapt.runs.parser import ConfigByName, RoutedParser
from moe_adapt.training.callbacks import claim_folder

__all__ = ["RoutedCLI", "fit", "predict", "test", "validate"]


USAGE = "moe-adapt {} [--config NAME_OR_FILE ...] [--out DIR] [--OPTION VALUE ...]"


class RoutedCLI(LightningCLI):
    """The parsed command, its objects, and the run.

    Args:
        args: The sub-command and its options.
    """

    def __init__(self, args: Sequence[str]) -> None:
        command, *options = args
        self._command = command
        self.custom_modules, options = split_custom_modules(options)
        self.key, self.key_shared, options = split_key(options)
        if self.key is not None:
            options += options_of_key(self.key, self.key_shared)
        import_custom_modules(self.custom_modules)
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            trainer_defaults=dict(defaults.TRAINER),
            parser_class=RoutedParser,
            parser_kwargs={"prog": "moe-adapt", command: {"usage": USAGE.format(command)}},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[command, f"--custom_modules={json.dumps(self.custom_modules)}", *options],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one sub-command that was given: parsers of the others would only take time."""
        return {self._command: super().subcommands()[self._command]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose ``--config`` knows the packaged configurations."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigByName,
            help="A configuration: a path, or a short name from `moe-adapt list`. Repeat it: later ones win.",
        )
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: an integer, so that the saved configuration repeats the run."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run and the links between model and data."""
        parser.add_argument(
            "--out", type=str | None, help="Folder of the run (default: a new one under runs/)."
        )
        parser.add_argument(
            "--resume",
            nargs="?",
            const=True,
            default=False,
            type=bool | str,
            help="Go on from the run's last checkpoint, or from the one given (fit only).",
        )
        parser.add_argument("--overwrite", action="store_true", help="Replace the run that is in the folder.")
        parser.add_argument(
            "--baseline",
            type=Baseline | None,
            help="Train plain LoRA at the same layers beside it: `equal` with as many trainable parameters, "
            "`lora` of rank 8 (fit only).",
        )
        parser.add_argument(
            "--start_from",
            type=str | None,
            help="Weights to start from, of an adapter of the same shape: a run folder, an exported adapter, "
            "or OWNER/NAME on the Hub (fit only; a resumed run has its own).",
        )
        parser.add_argument(
            "--custom_modules",
            type=list[str],
            default=[],
            help="A Python file to import first, so that its classes can be named; repeatable.",
        )
        defaults.add_arguments(parser)
        parser.link_arguments(("model", "data"), "data.init_args.tokenizer", compute_fn=tokenizer_or_backbone)
        parser.link_arguments(
            "data", "model.init_args.num_classes", compute_fn=self.num_classes, apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without the parent's warning that the arguments did not come from the process."""
        self.config = parser.parse_args(args)
        self.options.custom_modules = self.custom_modules  # a configuration may list but some of them

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the parent merges a checkpoint's hyper-parameters over the command line."""

    @property
    def options(self) -> Namespace:
        """The options of the chosen sub-command."""
        return self.config[self.config.subcommand]

    def num_classes(self, data: LightningDataModule) -> int | None:
        """Return the model's number of classes: the one given, else that of the data, set up for it."""
        arguments = self.options.model.init_args
        if "num_classes" in arguments and arguments.num_classes is None:
            data.prepare_data()
            data.setup("fit")
            arguments.num_classes = getattr(data, "num_classes", None)
            if arguments.num_classes is None:
                raise UserError(
                    f"{type(data).__name__} knows no number of classes; give --model.num_classes."
                )
        return arguments.get("num_classes")

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder and the checkpoint to start from, before anything large is loaded.

        Raises:
            UserError: If the folder is in use, or the checkpoint does not exist.
        """
        options = self.options
        if self.key is not None:
            data = options.data.init_args
            keys = count_keys(data.train, self.key, data.domain_groups)
            tuner = options.model.init_args.tuner
            getattr(tuner, "init_args", tuner).num_experts = keys + self.key_shared
        configs = [Path(str(path)) for path in options.get("config") or []]
        name = configs[-1].stem if configs else options.model.class_path.rsplit(".", 1)[-1]
        root = own_folder(configs, options.trainer.default_root_dir)
        self.folder = run_folder(options.out, root, name)
        options.trainer.default_root_dir = str(self.folder)
        defaults.check_strategy(options.trainer.strategy)
        if self.subcommand == "fit":
            defaults.limit_epochs(options.trainer)
            start = resume_checkpoint(options.resume, self.folder) or options.ckpt_path
            if start is not None and options.overwrite:
                raise UserError("give --resume to continue the run or --overwrite to replace it, not both.")
            if start is not None and Path(start).resolve().parent == (self.folder / "checkpoints").resolve():
                check_unfinished(self.folder, options.trainer)
            first_process = os.environ.get("LOCAL_RANK", "0") == "0"
            if first_process and not options.overwrite and not options.trainer.fast_dev_run:
                claim_folder(self.folder, None if start is None else Path(start))
        else:
            start = evaluation_checkpoint(options.ckpt_path, self.folder)
        options.ckpt_path = None if start is None else str(start)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer.

        Raises:
            UserError: If an option's value does not suit its class.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise unwrapped(error) from None
        if self.subcommand == "fit" and self.options.start_from and self.options.ckpt_path is None:
            self._start_from(self.options.start_from)

    def _start_from(self, source: str) -> None:
        from moe_adapt.runs.warm_start import warm_start

        fresh = warm_start(self.model, source)
        if not fresh:
            self.config_init[
                str(self.subcommand)
            ].head_start.kind = "random"  # it has a head that was trained
        rank_zero_info(f"Starts from {source}" + (f", but for {', '.join(fresh)}." if fresh else "."))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with our callbacks and loggers beside the user's.

        Raises:
            UserError: If the trainer refuses an option.
        """
        command = str(self.subcommand)
        options = self.config_init[command]
        ours = defaults.callbacks(options, command)
        classes = self.options.model.init_args.get("num_classes")
        self.trainer_defaults["callbacks"] = ours if classes is None else [CheckClasses(classes), *ours]
        if options.trainer.logger in (None, True):
            kwargs["logger"] = defaults.loggers(self.folder, command)
        kwargs["plugins"] = defaults.plugins(options.trainer.plugins)
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as refusal:
            raise UserError(f"the trainer refuses its options: {refusal}") from refusal

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train."""
        self.trainer.ckpt_path = (
            ckpt_path  # not an argument of `fit`: callbacks may ask for it from the start
        )
        check_baseline(self.options.baseline, self.model)
        self._run(self.trainer.fit, kwargs)
        others: dict[str, float] = {}
        if self.options.baseline is not None and self.trainer.is_global_zero:
            others = train_baseline(self.options.baseline, self.model, self.folder, fit)
        end_fit(self.trainer, self.model, self.datamodule, self.folder, others)

    def validate(self, **kwargs: Any) -> None:
        """Evaluate on the validation data."""
        self._run(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Evaluate on the test data."""
        (metrics,) = self._run(self.trainer.test, kwargs | {"verbose": False}) or [{}]
        end_test(self.trainer, self.model, metrics, "test rows")
        keep_test(self.trainer, self.folder, self.options.ckpt_path, metrics)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write the predictions into the run's folder."""
        self._run(self.trainer.predict, {**kwargs, "return_predictions": False})

    def _run(self, command: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run the trainer's command; Lightning turns Ctrl-C into a plain exit, we add how to go on."""
        try:
            return command(**arguments)
        except SystemExit as end:
            if not self.trainer.interrupted:
                raise
            raise Interrupted(resume_hint(self.folder) if self.subcommand == "fit" else "") from end
        except RuntimeError as error:
            if self.trainer.world_size == 1 or not is_of_a_lost_process(error):
                raise
            raise UserError(f"another process of this run has ended. {resume_hint(self.folder)}") from error


def tokenizer_or_backbone(model: Namespace | None, data: Namespace | None) -> str | None:
    """Return the data's tokenizer: the one given, else the model's backbone."""
    given = data.get("init_args.tokenizer") if data else None
    return given or (model.get("init_args.backbone") if model else None)


def run(command: str, argv: Sequence[str]) -> None:
    """Run one of the trainer's sub-commands.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: Its options.

    Raises:
        UserError: For any mistake in the options or the data.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they are about Lightning's own calls
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(worth_saying)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            RoutedCLI([command, *argv])
    except MisconfigurationException as mistake:
        raise UserError(str(mistake)) from mistake


def worth_saying(record: logging.LogRecord) -> bool:
    """Return whether a log record is not one of Lightning's tips, or of hardware that hardly anybody has."""
    said = record.getMessage()
    return not any(
        words in said for words in ("Tip: For seamless cloud", "TPU available", "to estimate number")
    )


fit = partial(run, "fit")
validate = partial(run, "validate")
test = partial(run, "test")
predict = partial(run, "predict")
