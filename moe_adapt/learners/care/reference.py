"""CaRE's mixture in the dense form: every expert on every token. What tests and benchmarks compare with.

Written expert by expert and router by router from the raw tensors, without folding, packing or gathering.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.learners.care.block import CareBlock, Scope
from moe_adapt.learners.care.bottleneck import EPS, BottleneckBank
from moe_adapt.learners.care.routers import KeyRouters

__all__ = ["dense_forward", "expert_output"]


def expert_output(bank: BottleneckBank, index: int, x: Tensor) -> Tensor:
    """Return one expert's output, [..., d], from its raw tensors."""
    part = {name: bank.whole(name)[index] for name in bank.tensors}
    if bank.layer_norm:
        x = F.layer_norm(x, x.shape[-1:], part["gain"], part["shift"], EPS)
    hidden = F.linear(x, part["down"], part["down_bias"]).relu()
    return part["scale"] * F.linear(hidden, part["up"], part["up_bias"])


def perceptron_entropy(block: CareBlock, task: int, u: Tensor) -> Tensor:
    """Return the entropy of one task's perceptron, [B]."""
    weight, bias, gain, shift = (block.perceptrons.whole(name) for name in block.perceptrons.tensors)
    sizes = block.perceptrons.sizes.tolist()
    rows = slice(sum(sizes[:task]), sum(sizes[: task + 1]))
    normal = F.layer_norm(u, u.shape[-1:], gain[task], shift[task], EPS)
    p = F.linear(normal, weight[rows], bias[rows]).softmax(dim=-1)
    entropy = -(p * (p + 1e-10).log()).sum(dim=-1)
    if block.options.normalize_entropy:
        return torch.ones_like(entropy) if sizes[task] == 1 else entropy / math.log(sizes[task])
    return entropy


def router_logits(block: CareBlock, router: int, u: Tensor) -> Tensor:
    """Return one router's logits for one row, [router + 1]."""
    routers, known = block.routers, router + 1
    if isinstance(routers, KeyRouters):
        query = routers.whole("query")[router] @ u
        return routers.whole("key")[:known] @ query + routers.whole("bias")[:known]
    start = router * known // 2
    rows = slice(start, start + known)
    return F.linear(u, routers.whole("weight")[rows], routers.whole("bias")[rows])


def dense_forward(
    block: CareBlock, tokens: Tensor, row: Tensor, scope: Scope, row_token: int | None = None
) -> Tensor:
    """Return what `CareBlock.forward` returns without dropout, [B, S, d].

    Args:
        block: The block.
        tokens: The residual stream, [B, S, d].
        row: The routing row of each sample, [B, d].
        scope: Which triplets take part.
        row_token: Taken for the sake of the same signature.
    """
    options = block.options
    outputs = torch.stack([expert_output(block.experts, e, tokens) for e in range(scope.tasks)], dim=1)
    rows = torch.stack([expert_output(block.experts, e, row) for e in range(scope.tasks)], dim=1)
    entropies = [perceptron_entropy(block, t, rows[:, t]) for t in range(scope.tasks)]
    results = []
    for sample in range(len(tokens)):
        ranked = sorted(range(scope.tasks), key=lambda t: float(entropies[t][sample].detach()))
        if scope.forced:
            ranked.remove(scope.tasks - 1)
            ranked.insert(0, scope.tasks - 1)
        chosen = ranked[: options.num_routers]
        total = torch.zeros_like(tokens[sample])
        for router in chosen:
            logits = router_logits(block, router, rows[sample, router])
            order = logits.detach().argsort(descending=True).tolist()
            newest = scope.tasks - 1
            if options.force_current_expert and scope.forced and router == newest:
                order.remove(newest)
                order.insert(0, newest)
            kept = order[: options.top_k]
            weights = logits[kept].softmax(dim=0)
            for weight, expert in zip(weights, kept, strict=True):
                total = total + weight * outputs[sample, expert]
        results.append(total / len(chosen) if options.average_routers else total)
    result = torch.stack(results)
    shared = (
        block.fast if block.training and block.fast is not None and block.fast.num_experts else block.shared
    )
    return result if shared is None else result + expert_output(shared, 0, tokens)
