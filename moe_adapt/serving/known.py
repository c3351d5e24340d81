"""What is known about whose row it is: values of a run's domain column, as numbers for the experts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraModel

__all__ = ["domain_column", "known_ids", "unknown_values"]


def domain_column(answering: Mapping[str, Any]) -> str | None:
    """Return the column that says whose a row is; None if the model was trained without one."""
    return answering.get("domain_column")


def unknown_values(answering: Mapping[str, Any], values: Iterable[Any]) -> list[str]:
    """Return the values that no training row had, each as often as it comes; ``none`` for a missing one."""
    known = answering.get("domains") or {}
    return ["none" if value is None else str(value) for value in values if str(value) not in known]


def known_ids(
    model: Any, adapters: Mapping[str, Mapping[str, Any]], values: Sequence[Any] | None, device: Any
) -> dict[str, Tensor]:
    """Return ``domain_ids`` [B] for a forward, -1 for unknown values; nothing where no expert takes them.

    Args:
        model: The model with its adapter.
        adapters: ``answering`` of every adapter of the model.
        values: Value of the domain column for each row, None for unknown; None if nothing is known.
        device: Where the model is.

    Raises:
        UserError: If several adapters share the model.
    """
    if values is None or all(value is None for value in values):
        return {}
    if len(adapters) > 1:
        raise UserError("rows say whose they are, which needs a model with one adapter; serve it alone.")
    (answering,) = adapters.values()
    if not answering.get("domains") or not isinstance(getattr(model, "base_model", None), RoutedLoraModel):
        return {}
    numbers = [answering["domains"].get(str(value), -1) for value in values]
    return {"domain_ids": torch.tensor(numbers, device=device)}
