"""How far apart the answers and routings of one adapter are over two precisions of its base.

The base is rounded in place: to bf16, to 8-bit integers per row, or to 4-bit NormalFloat in blocks of 64. The
arithmetic stays fp32, so what is seen is the effect of the rounded weights, not of a kernel.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.evaluation.trace.compare import compare_traces
from moe_adapt.evaluation.trace.metrics import mean_of
from moe_adapt.evaluation.trace.record import RoutingTrace

__all__ = ["PRECISIONS", "Agreement", "agreement", "round_weight"]

PRECISIONS = ("fp32", "bf16", "int8", "nf4")
#: Values in a block of NormalFloat that share a scale.
BLOCK = 64


def normal_float_levels() -> Tensor:
    """Return the 16 levels of NormalFloat4: quantiles of a normal, 0 and both ends among them, float64.

    Reference: QLoRA, Dettmers et al. 2023, arXiv 2305.14314.
    """
    offset = 0.5 * (1 - 1 / 32 + 1 - 1 / 30)
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    upper = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    lower = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    levels = torch.cat([upper, lower, torch.zeros(1).double()]).sort().values
    return levels / levels.abs().max()


def round_weight(weight: Tensor, precision: str) -> Tensor:
    """Return a weight as a precision stores it, in the dtype given.

    Args:
        weight: [o, d] or any other shape; rows are the first axis.
        precision: fp32, bf16, int8 (largest magnitude of each row is 127) or nf4 (blocks of 64 values).

    Raises:
        UserError: If there is no such precision.

    >>> round_weight(torch.tensor([[1.0, -0.5, 0.003]]), "int8")
    tensor([[ 1.0000, -0.5039,  0.0000]])
    """
    if precision == "fp32":
        return weight
    if precision == "bf16":
        return weight.bfloat16().to(weight.dtype)
    if precision == "int8":
        scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
        return (weight / scale).round() * scale
    if precision == "nf4":
        flat = weight.flatten()
        blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        levels = normal_float_levels().to(weight)
        middles = (levels[1:] + levels[:-1]) / 2
        rounded = levels[torch.bucketize(blocks / scale, middles)] * scale
        return rounded.flatten()[: len(flat)].view_as(weight)
    raise UserError(
        f"there is no precision {precision!r}.{did_you_mean(precision, PRECISIONS)} Choose among "
        f"{', '.join(PRECISIONS)}."
    )


@torch.no_grad()
def round_base(layers: Mapping[str, Any], precision: str) -> None:
    """Round the weights of frozen layers in place.

    Args:
        layers: The layers by name; each has a ``weight``.
        precision: See `round_weight`.
    """
    for layer in layers.values():
        layer.weight.copy_(round_weight(layer.weight.data, precision))


@dataclass(frozen=True)
class Agreement:
    """How far two precisions agree.

    Attributes:
        first: Share of tokens with the same first expert, mean over layers.
        same_set: Share of tokens with the same experts.
        routing_js: Jensen-Shannon divergence of the routers' probabilities, in nats.
        answers: Share of samples with the same answer.
        answer_kl: Mean divergence of the answers' distributions from the reference's, in nats.
    """

    first: float
    same_set: float
    routing_js: float
    answers: float
    answer_kl: float

    def row(self) -> dict[str, float]:
        """Return the values by name."""
        return asdict(self)


def agreement(reference: tuple[RoutingTrace, Tensor], other: tuple[RoutingTrace, Tensor]) -> Agreement:
    """Compare trace and logits [M, C] of the same samples under two precisions.

    Args:
        reference: Those of the reference, such as fp32.
        other: Those of the other.

    Raises:
        UserError: If the traces are not of the same tokens.
    """
    found = [vars(site) for site in compare_traces(reference[0], other[0]).values()]
    one, two = (logits.double().log_softmax(dim=-1) for logits in (reference[1], other[1]))
    return Agreement(
        first=float(mean_of(found, "top1") or 0.0),
        same_set=float(mean_of(found, "stability") or 0.0),
        routing_js=float(mean_of(found, "js") or 0.0),
        answers=float((one.argmax(-1) == two.argmax(-1)).double().mean()),
        answer_kl=float((one.exp() * (one - two)).sum(dim=-1).mean()),
    )
