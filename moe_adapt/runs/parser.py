"""The argument parser: no prefix matching, short configuration names, one-line errors.

`LightningArgumentParser` prints about 3,700 characters of usage before the useful line and takes
``--trainer.max_epoch`` for ``--trainer.max_epochs``. This one raises `UserError` with a did-you-mean instead.
"""

from argparse import Namespace as ArgparseNamespace
from argparse import _SubParsersAction
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from moe_adapt.backbones import Pretrained
from moe_adapt.errors import UserError
from moe_adapt.learners import Learner
from moe_adapt.runs.config_names import resolve_config
from moe_adapt.runs.messages import explain
from moe_adapt.streams import TaskStream
from moe_adapt.tuner.methods import stream_learner

__all__ = ["ConfigByName", "RoutedParser"]


class ConfigByName(ActionConfigFile):
    """``--config``: a path or the short name of a packaged configuration."""

    def __call__(
        self, parser: Any, cfg: ArgparseNamespace, values: Any, option_string: str | None = None
    ) -> None:
        """Merge the configuration into what was parsed so far."""
        path = resolve_config(str(values))
        learner = stream_learner(path.read_text(encoding="utf-8", errors="replace"))
        if learner is not None:
            raise UserError(
                f"{values} describes the layer of a stream's learner, which adds its experts task by task: "
                f"run `moe-adapt stream --config {learner}`."
            )
        try:
            super().__call__(parser, cfg, str(path), option_string)
        except UserError as mistake:
            raise UserError(f"in {values}: {mistake}") from mistake


class RoutedParser(LightningArgumentParser):
    """A LightningArgumentParser with one-line errors that writes linked values out with the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a one-line `UserError`; an inner parser (of a class's options) raises an ArgumentError.

        Raises:
            UserError: Always, on the outermost parser.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(explain(message, self.option_names(), _known_classes())) from ex

    def option_names(self) -> list[str]:
        """Return the names of the options, sub-commands' included, with dots and without leading dashes."""
        choices = [action.choices or {} for action in self._actions if isinstance(action, _SubParsersAction)]
        parsers = [self, *(parser for choice in choices for parser in choice.values())]
        return [name.lstrip("-") for parser in parsers for name in parser._option_string_actions]

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Write a configuration out whole, with the values that a link may have filled in."""
        kwargs.setdefault("skip_link_targets", False)
        return super().dump(*args, **kwargs)


def _known_classes() -> dict[str, list[str]]:
    roots: dict[str, type] = {
        "model": LightningModule,
        "data": LightningDataModule,
        "backbone": Pretrained,
        "stream": TaskStream,
        "learner": Learner,
    }
    return {option: [cls.__name__ for cls in _descendants(root)] for option, root in roots.items()}


def _descendants(cls: type) -> Iterator[type]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        if not child.__module__.startswith("lightning."):
            yield child
        yield from _descendants(child)
