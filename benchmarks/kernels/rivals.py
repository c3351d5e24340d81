"""The mixture of experts as others write it: what our implementations are measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, register
from moe_adapt.kernels.problem import Operands

__all__ = ["expert_loop", "register_rivals"]


def expert_loop(operands: Operands) -> Tensor:
    """Gather each expert's tokens in turn, and add its output to theirs."""
    gates, result = operands.dense_gates(), operands.base
    assert result is not None
    for expert in range(operands.a.shape[0]):
        tokens = gates[:, expert].nonzero().squeeze(-1)
        output = F.linear(F.linear(operands.x[tokens], operands.a[expert]), operands.b[:, expert])
        weight = gates[tokens, expert].to(output.dtype).unsqueeze(-1) * operands.scale
        result = torch.index_add(result, 0, tokens, (output * weight).to(result.dtype))
    return result


def register_rivals() -> None:
    """Make the rivals known to the operator, for ``impl=`` and ``MOE_ADAPT_KERNEL``."""
    register(Implementation("expert_loop", expert_loop, lambda _: "", lambda *_: ""))
