"""A pool of experts that grows by the same number for every task, with everything older frozen bit for bit.

Old experts move into buffers (`moe_adapt.tuner.edit`). Old rows of the router share a parameter with the new
ones, so they are restored after every optimiser step instead: neither momentum nor weight decay moves them.

New experts start untrained, or (`start: most_useful`) as copies of the old experts that the router gives most
of the new task's tokens to. The originals stay frozen, and a token uses an original or its copy, never both
(`twin_exclusive`, each for itself). So the first batch has the loss of the pool before it grew; without the
copies the old outputs are back bit for bit.

Reference: Expert Upcycling, amazon-science/expert-upcycling, for pools that are trained on as a whole.
"""

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.errors import UserError
from moe_adapt.learners.instructions.base import InstructionLearner
from moe_adapt.learners.instructions.observing import LayerInput, watch_layers
from moe_adapt.optim import FreezeExperts, UpdateHook
from moe_adapt.streams import Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.edit import add_experts
from moe_adapt.tuner.layer import RoutedLoraLayer

__all__ = ["GrowingPool", "run_samples"]

ADAPTER = "default"
ROWS = "scorer.weight"
#: Keeps a copy and its original apart: the winner for itself, equals to the copy.
TWINS = {"name": "twin_exclusive", "joint": False}


class GrowingPool(InstructionLearner):
    """Experts per task; old ones never change.

    Args:
        backbone: The model.
        tuner: The adapter; its number of experts is that of each task.
        start: How new experts start: random (untrained) or most_useful (copies of old ones).
        start_samples: Training samples on which their use is measured.
        settings: Arguments of `Learner`.
    """

    def __init__(
        self,
        backbone: InstructionModel,
        tuner: RoutedLoraConfig,
        start: Literal["random", "most_useful"] = "random",
        start_samples: int = 64,
        **settings: Any,
    ) -> None:
        if start not in ("random", "most_useful"):
            raise UserError(f"start is 'random' or 'most_useful', got {start!r}.")
        if start_samples < 1:
            raise UserError(f"start_samples must be at least 1, got {start_samples}.")
        super().__init__(backbone, _with_twins(tuner) if start == "most_useful" else tuner, **settings)
        self.start, self.start_samples = start, start_samples
        if start == "most_useful" and any(self.router_rows(layer) is None for layer in self.layers()):
            raise UserError("start='most_useful' copies rows of the router; take a scorer that has them.")
        self.per_task = {layer.site: layer.specs[ADAPTER].num_experts for layer in self.layers()}

    def begin_task(self, task: Task) -> None:
        """Grow; let the new experts begin as copies if asked to."""
        warm = self.start == "most_useful" and bool(self.history)
        use = self._use(task) if warm else {}
        super().begin_task(task)
        for layer in self.layers() if warm else ():
            self._copy_most_used(layer, use[layer.site])

    @torch.no_grad()
    def _use(self, task: Task) -> dict[str, Tensor]:
        """Return the sums of each expert's gates over samples of a task, [E], by site."""
        found: dict[str, Tensor] = {}

        def watch(seen: LayerInput) -> None:
            gates = seen.gates()
            assert gates is not None
            own = gates.double().sum(dim=0)
            found[seen.layer.site] = found.get(seen.layer.site, torch.zeros_like(own)) + own

        with self.peft_tuner.record():
            run_samples(self, task, self.start_samples, watch)
        return found

    @torch.no_grad()
    def _copy_most_used(self, layer: RoutedLoraLayer, use: Tensor) -> None:
        """Make each new expert of a layer a copy of one of the most used old ones."""
        new = torch.nonzero(self.new_experts(layer))[:, 0]
        order = use.sort(descending=True, stable=True).indices
        sources = order[torch.arange(len(new), device=order.device) % len(order)]
        a, b = layer.factors(ADAPTER)
        layer.moe_adapt_A[ADAPTER].copy_(a[sources])
        layer.moe_adapt_B[ADAPTER].copy_(b[:, sources])
        tensors = layer.routers[ADAPTER].tensors(layer)
        for name, tensor in tensors.items():
            if name == ROWS or name.endswith(".twins"):
                tensor[new] = tensor[sources]

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


def run_samples(learner: GrowingPool, task: Task, count: int, watcher: Callable[[LayerInput], None]) -> None:
    """Run training samples of a task, evenly spread, in evaluation mode, and watch the layers.

    Args:
        learner: The learner.
        task: The task.
        count: How many samples, or all there are if fewer.
        watcher: Gets what each layer saw.
    """
    handles = watch_layers(learner.layers(), watcher)
    chosen = np.linspace(0, len(task.train) - 1, min(count, len(task.train))).astype(int)
    was_training = learner.training
    learner.eval()
    try:
        for some in np.array_split(chosen, -(-len(chosen) // 16)):
            learner.answerer.run(task.collate([task.train.plain()[int(row)] for row in some]))
    finally:
        for handle in handles:
            handle.remove()
        learner.train(was_training)


def _with_twins(tuner: RoutedLoraConfig) -> RoutedLoraConfig:
    """Return the adapter with the modifier that keeps copies apart, unless it has it."""
    modifiers = list(tuner.modifiers or [])
    names = [spec if isinstance(spec, str) else spec["name"] for spec in modifiers]
    if TWINS["name"] in names:
        return tuner
    changed = copy.deepcopy(tuner)
    changed.modifiers = [*modifiers, dict(TWINS)]
    return changed
