"""The mixture of experts as others write it: what our implementations are measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, register
from moe_adapt.kernels.problem import Operands

__all__ = [
    "RIVALS",
    "einsum",
    "expert_loop",
    "grouped_mm",
    "plain_lora",
    "register_rivals",
    "single_lora",
    "stacked_autograd",
]


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


def einsum(operands: Operands) -> Tensor:
    """Form every expert's output for every token, [N, E, o], and sum."""
    assert operands.base is not None
    hidden = torch.einsum("nd,erd->ner", operands.x, operands.a)
    outputs = torch.einsum("ner,oer->neo", hidden, operands.b)
    return (
        operands.base
        + torch.einsum("neo,ne->no", outputs, operands.dense_gates().to(outputs.dtype)) * operands.scale
    )


def grouped_mm(operands: Operands) -> Tensor:
    """Sort pairs by expert, multiply by `grouped_mm`, add to the tokens: autograd does the rest."""
    assert operands.index is not None and operands.base is not None
    keys, order = operands.index.flatten().sort(stable=True)
    tokens = order // operands.index.shape[1]
    experts = torch.arange(len(operands.a), device=keys.device, dtype=keys.dtype)
    ends = torch.searchsorted(keys, experts, right=True).to(torch.int32)  # without waiting for a GPU
    hidden = F.grouped_mm(operands.x[tokens], operands.a.transpose(1, 2), offs=ends)
    output = F.grouped_mm(hidden, operands.b.permute(1, 2, 0), offs=ends)
    weight = operands.slot_weights().flatten()[order].unsqueeze(1) * operands.scale
    return operands.base.index_add(0, tokens, (output * weight).to(operands.base.dtype))


def stacked_autograd(operands: Operands) -> Tensor:
    """Take two products over all experts and leave the gradients to autograd."""
    assert operands.base is not None
    experts, rank, features = operands.a.shape
    hidden = F.linear(operands.x, operands.a.reshape(-1, features)).view(-1, experts, rank)
    weights = (operands.dense_gates() * operands.scale).to(hidden.dtype)
    gated = (hidden * weights.unsqueeze(-1)).view(-1, experts * rank)
    return torch.addmm(operands.base, gated, operands.b.reshape(-1, experts * rank).t())


def plain_lora(operands: Operands) -> Tensor:
    """Compute one LoRA of rank `E r` as PEFT does, without gates: the yardstick."""
    assert operands.base is not None
    experts, rank, features = operands.a.shape
    hidden = F.linear(operands.x, operands.a.reshape(-1, features))
    return operands.base + F.linear(hidden, operands.b.reshape(-1, experts * rank)) * operands.scale


def single_lora(operands: Operands) -> Tensor:
    """Compute the first expert alone, for all tokens: the least that any routing costs."""
    assert operands.base is not None
    hidden = F.linear(operands.x, operands.a[0])
    return operands.base + F.linear(hidden, operands.b[:, 0]) * operands.scale


RIVALS = {
    "expert_loop": expert_loop,
    "einsum": einsum,
    "grouped_mm": grouped_mm,
    "stacked_autograd": stacked_autograd,
    "plain_lora": plain_lora,
    "single_lora": single_lora,
}


def register_rivals() -> None:
    """Make the rivals known to the operator, for ``impl=`` and ``MOE_ADAPT_KERNEL``."""
    for name, forward in RIVALS.items():
        register(Implementation(name, forward, lambda _: "", lambda *_: ""))
