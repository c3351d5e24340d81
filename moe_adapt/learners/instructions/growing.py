"""A pool of experts that grows by the same number for every task, with everything older frozen bit for bit.

Old experts move into buffers (`moe_adapt.tuner.edit`). Old rows of the router share a parameter with the new
ones, so they are restored after every optimiser step instead: neither momentum nor weight decay moves them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.learners.instructions.base import InstructionLearner
from moe_adapt.optim import FreezeExperts, UpdateHook
from moe_adapt.streams import TaskRecord
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.edit import add_experts
from moe_adapt.tuner.layer import RoutedLoraLayer

__all__ = ["GrowingPool"]

ADAPTER = "default"
ROWS = "scorer.weight"


class GrowingPool(InstructionLearner):
    """Experts per task; old ones never change.

    Args:
        backbone: The model.
        tuner: The adapter; its number of experts is that of each task.
        settings: Arguments of `Learner`.
    """

    def __init__(self, backbone: InstructionModel, tuner: RoutedLoraConfig, **settings: Any) -> None:
        super().__init__(backbone, tuner, **settings)
        self.per_task = {layer.site: layer.specs[ADAPTER].num_experts for layer in self.layers()}

    def grow(self, record: TaskRecord) -> None:
        """Freeze all experts and append those of the task; the first task has its own already."""
        if record.index == 0:
            return
        held = [expert for layer in self.layers()[:1] for expert in range(layer.specs[ADAPTER].num_experts)]
        self.peft_tuner.freeze_experts(held)
        add_experts(self.peft_tuner, next(iter(self.per_task.values())))

    def new_experts(self, layer: RoutedLoraLayer) -> Tensor:
        """Return which experts of a layer belong to the newest task, bool [E]."""
        spec = layer.specs[ADAPTER]
        newest = torch.ones(spec.num_experts, dtype=torch.bool)
        newest[: spec.num_experts - self.per_task[layer.site]] = False
        return newest

    def router_rows(self, layer: RoutedLoraLayer) -> Tensor | None:
        """Return the router's rows [E, d], if it has any."""
        return layer.routers[ADAPTER].tensors(layer).get(ROWS)

    def configure_optimizers(self) -> Any:
        """Return the optimiser; it leaves the rows of old experts as they are."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        transforms = {}
        for layer in self.layers():
            rows, newest = self.router_rows(layer), self.new_experts(layer)
            if isinstance(rows, nn.Parameter) and not bool(newest.all()):
                freeze = FreezeExperts(dim=0)
                freeze.mask = ~newest
                transforms[layer.site] = (rows, [freeze])
        UpdateHook(transforms).attach(optimizer)
        return configured

    def report(self) -> dict[str, Any]:
        """Return sizes; rows of old experts are not counted as trainable."""
        found = super().report()
        held = 0
        for layer in self.layers():
            rows = self.router_rows(layer)
            if isinstance(rows, nn.Parameter):
                held += int((~self.new_experts(layer)).sum()) * rows.shape[1]
        found["trainable_parameters"] -= held
        return {**found, "experts": sum(layer.specs[ADAPTER].num_experts for layer in self.layers())}
