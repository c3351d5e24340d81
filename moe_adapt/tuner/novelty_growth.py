"""Grow the pool when the training stream becomes another one, without being told where tasks end.

    grow = GrowOnNovelty(model.base_model)
    for batch in stream:  # in its own order
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        grow.step(optimizer)

What a sample looks like is the mean over its tokens of the input of the middle adapted layer;
`moe_adapt.evaluation.novelty_watch` says when samples are no longer like the earlier ones. It is for loops of
one's own: a run of ``moe-adapt fit`` has one shape from its configuration to its checkpoints.

Reference: "Transitive Expert Error" (abstract); the rule is ours.
"""

from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.evaluation.novelty_watch import NoveltyWatch
from moe_adapt.tuner.edit import add_experts
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.model import RoutedLoraModel

__all__ = ["GrowOnNovelty"]


class GrowOnNovelty:
    """Adds experts when the inputs are no longer those that the pool knows.

    Args:
        tuner: The tuner, in training mode while it is watched.
        experts: How many are added at an alarm.
        freeze: Whether the experts that are there freeze then.
        most: Most alarms that add experts.
        reference: See `NoveltyWatch`.
        alpha: See there.

    Attributes:
        watch: What was seen, and where the alarms were.
        added: Names of the experts of each growth.

    Raises:
        UserError: If no expert would be added.
    """

    def __init__(
        self,
        tuner: RoutedLoraModel,
        experts: int = 1,
        freeze: bool = True,
        most: int = 8,
        reference: int = 256,
        alpha: float = 1e-3,
    ) -> None:
        if experts < 1 or most < 1:
            raise UserError(f"at least one expert is added at one alarm or more, got {experts} and {most}.")
        self.tuner, self.experts, self.freeze, self.most = tuner, experts, freeze, most
        self.watch = NoveltyWatch(reference, alpha)
        self.added: list[list[str]] = []
        self._seen: list[Tensor] = []
        layers = adapted_layers(tuner.model)
        self._handle = layers[len(layers) // 2].register_forward_pre_hook(self._look)

    def remove(self) -> None:
        """Look no longer."""
        self._handle.remove()

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Take the samples of the last training forward; return whether the pool grew.

        Args:
            optimizer: The optimizer of the adapter, which gets the new experts.
        """
        seen, self._seen = self._seen, []
        if not seen or not self.watch.observe(seen[0]) or len(self.added) >= self.most:
            return False
        grown = add_experts(self.tuner, self.experts, optimizer=optimizer, freeze_others=self.freeze)
        self.added.append(grown)
        return True

    def _look(self, layer: Any, args: tuple[Tensor, ...]) -> None:
        if not layer.training or self._seen:
            return
        x = args[0].detach()
        if x.ndim > 2:
            mask = layer.session.current(True).arrive(layer.site, x)
            tokens = x.flatten(1, -2)
            real = torch.ones(tokens.shape[:2]) if mask is None else mask.view(tokens.shape[:2])
            weight = real.to(tokens).unsqueeze(-1)
            x = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        self._seen = [x]
