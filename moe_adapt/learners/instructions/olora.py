r"""O-LoRA: a LoRA per task, all of them added up, each kept orthogonal to its predecessors.

$$L = L_{answer} + \lambda \sum_{sites} \sum_{i < t} \lVert A_i A_t^T \rVert_F^2$$

with the down-projections `A` [r, d], whose rows span what a LoRA reads. Old LoRAs are frozen and stay in
the sum, so no task id is needed. The paper squares the entries, its code takes their absolute values; this
follows the paper.

Reference:
    Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", arXiv 2310.14152.
"""

from typing import Any

import torch
from torch import Tensor

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS
from moe_adapt.learners.instructions.growing import ADAPTER, GrowingPool
from moe_adapt.streams import Batch
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["OLoRA", "overlap"]


def overlap(old: Tensor, new: Tensor) -> Tensor:
    """Return `||A_old A_new^T||_F^2`, 0 if the rows of both are orthogonal.

    Args:
        old: Down-projections of earlier tasks, [..., d].
        new: Down-projections of this one, [..., d].

    >>> float(overlap(torch.eye(3)[:1], torch.eye(3)[1:])), float(overlap(torch.eye(3), torch.eye(3)))
    (0.0, 3.0)
    """
    return (old.flatten(0, -2) @ new.flatten(0, -2).t()).square().sum()


@LEARNERS.register("olora")
class OLoRA(GrowingPool):
    """A sum of LoRAs, orthogonal to one another.

    Args:
        backbone: The model.
        tuner: The adapter of one task, method 'lora_sum'.
        orthogonality: Weight of the penalty. Higher: LoRAs overlap less, new tasks have less room.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the adapter does not add its experts up.
    """

    reference = "O-LoRA, Wang et al. 2023, arXiv 2310.14152"

    distributable = True

    def __init__(
        self, backbone: InstructionModel, tuner: RoutedLoraConfig, orthogonality: float = 0.5, **settings: Any
    ) -> None:
        selector = tuner.selector if isinstance(tuner.selector, str) else (tuner.selector or {}).get("name")
        if selector != "sum":
            raise UserError(
                f"O-LoRA adds its LoRAs up: take the method 'lora_sum' (the selector is {selector!r})."
            )
        super().__init__(backbone, tuner, **settings)
        self.orthogonality = orthogonality

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the right answers and the penalty."""
        found = super().losses(batch)
        if len(self.history) > 1:
            terms = [
                overlap(layer.moe_adapt_A_frozen[ADAPTER], layer.moe_adapt_A[ADAPTER])
                for layer in self.layers()
            ]
            found["orthogonality"] = self.orthogonality * torch.stack(terms).sum()
        return found
