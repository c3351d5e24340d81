r"""Baselines that keep something of old tasks: samples, or the routing of old inputs.

* **Replay** adds the loss of a few stored samples to every step.
* **Routing anchor** stores inputs of every router and how it gated them at the end of their task, and adds
  $\mathrm{KL}(p_{then} \,\|\, p_{now})$ on them: routers are held where they were, experts are free. The
  inputs are taken as they were stored, so nothing is run again; that experts in shallower layers change what
  deeper routers see is not corrected.

Reference:
    Routing-anchor loss: arXiv 2509.22745, there against the routing of harmful prompts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, TaskRun
from moe_adapt.learners.instructions.base import SequentialInstructions
from moe_adapt.learners.instructions.memory import SampleMemory
from moe_adapt.learners.instructions.observing import LayerInput, watch_layers
from moe_adapt.routing.losses.routing_anchor import anchor_divergence
from moe_adapt.streams import Batch, Task
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["ReplayInstructions", "RoutingAnchor"]

ADAPTER = "default"


@LEARNERS.register("replay_instructions")
class ReplayInstructions(SequentialInstructions):
    """Sequential training with stored samples in every step.

    Args:
        backbone: The model.
        tuner: The adapter.
        per_task: Samples kept of each task. Higher: less forgetting, more memory.
        replay_size: Stored samples per step. Higher: old samples count for more, slower steps.
        settings: Arguments of `Learner`.
    """

    reference = "ER, Chaudhry et al. 2019, arXiv 1902.10486"

    distributable = False  # not tried

    def __init__(
        self,
        backbone: InstructionModel,
        tuner: RoutedLoraConfig,
        per_task: int = 16,
        replay_size: int = 8,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, tuner, **settings)
        self.per_task, self.replay_size = per_task, replay_size
        self.memory = SampleMemory(per_task)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of new and of stored samples; auxiliary losses are those of the new ones."""
        replayed = self.answerer.answer_loss(self.memory.draw(self.replay_size)) if len(self.memory) else None
        found = super().losses(batch)
        return found if replayed is None else {**found, "replay": replayed}

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Keep samples of the task."""
        self.memory.add(task)


@LEARNERS.register("routing_anchor")
class RoutingAnchor(SequentialInstructions):
    """Sequential training with routers held where they were on stored inputs.

    Args:
        backbone: The model.
        tuner: The adapter, with a linear scorer.
        anchor: Weight of the divergence. Higher: routing of old inputs moves less.
        per_task: Inputs kept of each task and layer.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the scorer is not linear.
    """

    reference = "arXiv 2509.22745, there on harmful prompts"

    distributable = False  # not tried

    def __init__(
        self,
        backbone: InstructionModel,
        tuner: RoutedLoraConfig,
        anchor: float = 1.0,
        per_task: int = 128,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, tuner, **settings)
        self.anchor, self.per_task = anchor, per_task
        self.anchors = nn.ModuleDict()
        for layer in self.layers():
            if layer.routers[ADAPTER].rows(layer) is None:
                raise UserError(f"the routing anchor needs a linear scorer, which {layer.site} lacks.")
            held = nn.Module()
            held.register_buffer("inputs", torch.zeros(0, layer.in_features))
            held.register_buffer("gates", torch.zeros(0, layer.specs[ADAPTER].num_experts))
            self.anchors[layer.site.replace(".", "/")] = held

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the right answers and the divergence from the old routing."""
        found, terms = super().losses(batch), []
        for layer in self.layers():
            held: Any = self.anchors[layer.site.replace(".", "/")]
            rows = layer.routers[ADAPTER].rows(layer)
            if len(held.inputs) and rows is not None:
                terms.append(anchor_divergence(held.inputs @ rows.float().t(), held.gates).mean())
        return {**found, "anchor": self.anchor * torch.stack(terms).mean()} if terms else found

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Keep inputs of every layer, and how they are routed now."""
        seen: dict[str, list[Tensor]] = {}

        def watch(layer_input: LayerInput) -> None:
            seen.setdefault(layer_input.layer.site, []).append(layer_input.rows.float())

        handles = watch_layers(self.layers(), watch)
        for batch in run.batches(task.train):
            self.answerer.run(batch)
            if all(sum(map(len, rows)) >= 8 * self.per_task for rows in seen.values()):
                break
        for handle in handles:
            handle.remove()
        generator = torch.Generator().manual_seed(task.index)
        for layer in self.layers():
            pool = torch.cat(seen[layer.site])
            chosen = pool[torch.randperm(len(pool), generator=generator)[: self.per_task].to(pool.device)]
            held: Any = self.anchors[layer.site.replace(".", "/")]
            rows = layer.routers[ADAPTER].rows(layer)
            assert rows is not None
            held.inputs = torch.cat([held.inputs, chosen])
            held.gates = torch.cat([held.gates, (chosen @ rows.float().t()).softmax(-1)])
