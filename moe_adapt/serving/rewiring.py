"""Another routing while a language model answers: fitted to the prompt, or towards one of two traces."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.contrast import expert_contrast
from moe_adapt.evaluation.trace.file import load_trace
from moe_adapt.serving.generate import Generating
from moe_adapt.tuner import RoutedLoraModel
from moe_adapt.tuner.offsets import fit_offsets, routing_offsets, steering_offsets

__all__ = ["rewired", "steered"]


@contextmanager
def rewired(model: Generating, tokens: Sequence[int], steps: int, lr: float = 0.1) -> Iterator[None]:
    """Route as suits a prompt while the block runs: offsets that lower its own next-token loss.

    Args:
        model: The language model.
        tokens: The prompt's tokens; fewer than two have no loss, and nothing is fitted.
        steps: Steps of the fit; 0 changes nothing.
        lr: Size of a step, in units of logits.

    Raises:
        UserError: If the model has no routed adapter.
    """
    tuner = _tuner(model)
    ids = torch.tensor([list(tokens)], device=next(model.model.parameters()).device)

    def loss() -> Tensor:
        logits = model.model(input_ids=ids).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:])

    with routing_offsets(tuner, fit_offsets(tuner, loss, steps if len(tokens) > 1 else 0, lr)):
        yield


@contextmanager
def steered(model: Generating, towards: Path, away: Path, strength: float) -> Iterator[None]:
    """Prefer the experts that one trace uses more than another while the block runs.

    Args:
        model: The language model.
        towards: Folder of the trace whose experts are preferred.
        away: Folder of the other.
        strength: Times the log-ratio of their use; 0 changes nothing.

    Raises:
        UserError: If the model has no routed adapter, or the traces are of another one.
    """
    contrast = expert_contrast(load_trace(towards), load_trace(away))
    device = next(model.model.parameters()).device
    offsets = {site: o.to(device) for site, o in steering_offsets(contrast, strength).items()}
    with routing_offsets(_tuner(model), offsets):
        yield


def _tuner(model: Generating) -> Any:
    tuner = getattr(model.model, "base_model", None)
    if not isinstance(tuner, RoutedLoraModel):
        raise UserError("the model has no routed adapter, so there is no routing to change.")
    return tuner
