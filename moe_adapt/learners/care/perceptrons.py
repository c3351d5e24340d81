r"""Class perceptrons: a small classifier per task and block, whose entropy says if a sample is of the task.

$$C_t(u) = W_t\, \mathrm{LN}_t(u) + b_t, \qquad p_t = \mathrm{softmax}(C_t(u_t)), \qquad
H_t = -\sum_j p_{tj} \log(p_{tj} + 10^{-10})$$

on the routing row `u_t` of task t's own expert, per sample and block, natural logarithm, float32. The raw
entropy favours tasks of few classes (a task of one class has entropy zero and would always be chosen);
`normalize` divides by the logarithm of the number of classes and gives a task of one class the value 1.

The layer norm's gain starts at trunc-normal(0.02), as in the released code: a new expert outputs exactly
zero, where a layer norm with gain 1 multiplies gradients by about 316.

Rows of all tasks are packed, so tasks may differ in their number of classes; tasks of equal size share a
product.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import init

from moe_adapt.learners.care.bottleneck import linear_rows, standardize
from moe_adapt.learners.care.growing import Growing

__all__ = ["Perceptrons"]


class Perceptrons(Growing):
    """The class perceptrons of one block.

    Args:
        width: Features, `d`.
        gain: Standard deviation of the layer norm's gain at the start; None starts it at 1.

    Attributes:
        sizes: Number of classes of each task, [T].
    """

    sizes: Tensor
    tensors: ClassVar[tuple[str, ...]] = ("weight", "bias", "gain", "shift")

    def __init__(self, width: int, gain: float | None = 0.02) -> None:
        super().__init__({"weight": (width,), "bias": (), "gain": (width,), "shift": (width,)})
        self.width = width
        self.initial_gain = gain
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.int64))

    def grow(self, classes: int) -> None:
        """Add a trainable perceptron for a task of so many classes."""
        gain = torch.ones(1, self.width)
        if self.initial_gain is not None:
            init.trunc_normal_(gain, std=self.initial_gain)
        self.append(
            {
                "weight": linear_rows(classes, self.width),
                "bias": init.uniform_(torch.empty(classes), -(self.width**-0.5), self.width**-0.5),
                "gain": gain,
                "shift": torch.zeros(1, self.width),
            }
        )
        self.sizes = torch.cat([self.sizes, self.sizes.new_tensor([classes])])

    def current(self, row: Tensor) -> Tensor:
        """Return the logits of the newest task for routing rows of its expert, [B, n]."""
        weight, bias, gain, shift = (self.whole(name) for name in self.tensors)
        classes = int(self.sizes[-1])
        return (standardize(row) * gain[-1] + shift[-1]) @ weight[-classes:].T + bias[-classes:]

    def entropies(self, rows: Tensor, normalize: bool = False) -> Tensor:
        """Return the entropy of every task's perceptron, [B, T].

        Args:
            rows: Routing rows of the first `T` experts, [B, T, d].
            normalize: Whether to divide by the logarithm of the number of classes.
        """
        weight, bias, gain, shift = (self.whole(name) for name in self.tensors)
        tasks = rows.shape[1]
        normal = standardize(rows)
        result = normal.new_empty(len(rows), tasks)
        sizes = self.sizes[:tasks].cpu()
        starts = sizes.cumsum(0) - sizes
        for size in sizes.unique().tolist():
            members = (sizes == size).nonzero().squeeze(1)
            picked = members.to(rows.device)
            classes = (starts[members].unsqueeze(1) + torch.arange(size)).to(rows.device)
            read = normal[:, picked] * gain[picked] + shift[picked]
            scores = torch.bmm(read.transpose(0, 1), weight[classes].transpose(1, 2))
            p = (scores + bias[classes].unsqueeze(1)).softmax(dim=-1)
            entropy = -(p * (p + 1e-10).log()).sum(dim=-1)
            if normalize:
                entropy = torch.ones_like(entropy) if size == 1 else entropy / math.log(size)
            result[:, picked] = entropy.T
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}sizes" in state_dict:
            self.sizes = self.sizes.new_zeros(len(state_dict[f"{prefix}sizes"]))
        super()._load_from_state_dict(state_dict, prefix, *args)
