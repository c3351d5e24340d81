"""What Lightning's own tools ask of a module: one learning rate to set, a checkpoint that opens by itself.

`Tuner.lr_find` and `LearningRateFinder` write one number into ``module.lr``. We have a rate per role, so the
number becomes that of the experts, and the others keep their ratio to it. ``load_from_checkpoint(path)`` gets
the constructor's arguments from the checkpoint. `BackboneFinetuning` thaws the base, which a checkpoint of
ours does not hold, so it is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import lightning as L
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.training import checkpoint as checkpoints
from moe_adapt.training.procedures import PROCEDURES
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["LightningTools"]


class LightningTools(L.LightningModule):
    """A module whose learning rates, checkpoints and modes Lightning's tools can handle.

    Attributes:
        learning_rates: The learning rate of ``router``, ``experts`` and ``head``.
    """

    learning_rates: dict[str, float]

    @property
    def lr(self) -> float:
        """The experts' learning rate; setting it moves those of router and head in proportion."""
        return self.learning_rates["experts"]

    @lr.setter
    def lr(self, value: float | Mapping[str, float]) -> None:
        if isinstance(value, Mapping):
            self.learning_rates = dict(value)
            return
        old = self.learning_rates["experts"]
        self.learning_rates = {
            role: value * (rate / old) if old else value for role, rate in self.learning_rates.items()
        }

    def setup(self, stage: str) -> None:
        """Enter training mode, which pretrained models do not come in: finders train before a fit begins."""
        if stage == "fit":
            self.train()

    def configure_callbacks(self) -> list[L.Callback]:
        """Return no callbacks of its own.

        Raises:
            UserError: If the trainer has a `BackboneFinetuning`.
        """
        given = getattr(self.trainer, "callbacks", [])
        if any(isinstance(callback, BackboneFinetuning) for callback in given):
            raise UserError(
                "BackboneFinetuning thaws the base model, which stays frozen here and is in no checkpoint; "
                "take the callback out. More is trained with a higher rank, more target_modules, or parts of "
                "the base named in modules_to_save."
            )
        return []

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        **arguments: Any,
    ) -> Self:
        """Build the module that wrote a checkpoint, and load it, verified.

        Args:
            checkpoint_path: The checkpoint.
            map_location: Device to move the module to.
            hparams_file: Not used: the checkpoint has all that is needed.
            strict: Not used: every tensor is always compared.
            arguments: Arguments of the constructor, in place of those of the checkpoint; the name of the
                backbone among them if it lies somewhere else now.

        Raises:
            UserError: If the checkpoint is not of this class, or does not say enough to build it.
        """
        record = checkpoints.read_checkpoint(checkpoint_path).get(checkpoints.KEY)
        if record is None:
            raise UserError(
                f"{checkpoint_path} was not written by moe_adapt; give a checkpoint of a run folder."
            )
        identity = record["identity"]
        if identity["class"] != cls.__name__:
            raise UserError(
                f"{checkpoint_path} holds a {identity['class']}, not a {cls.__name__}; call "
                f"{identity['class']}.load_from_checkpoint."
            )
        known = _arguments(record) | arguments
        try:
            module = cls(**known)
        except TypeError as error:
            raise UserError(
                f"{cls.__name__} cannot be built from {checkpoint_path} alone ({error}); give what is "
                "missing as keyword arguments of load_from_checkpoint."
            ) from error
        checkpoints.load_checkpoint(module, checkpoint_path)
        if isinstance(module, nn.Module) and map_location is not None and not callable(map_location):
            module = module.to(map_location)
        return module


def _arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments that a checkpoint knows."""
    settings = {name: value for name, value in record["identity"].items() if name not in ("class", "tuner")}
    training = dict(record["training"])
    rates = training.pop("lr")
    tuner = record["identity"]["tuner"]
    procedure = training.pop("procedure", None)
    return {
        "backbone": record["backbone"],
        "tuner": RoutedLoraConfig(**tuner) if tuner else None,
        "lr": rates["experts"],
        "router_lr": rates["router"],
        "head_lr": rates["head"],
        "procedure": None if procedure is None else PROCEDURES.build(procedure),
        **training,
        **settings,
    }
