"""The session of a model: what opens a `RouteContext` for each of its forwards and outlives them.

A hook before the model's forward calls `RoutingSession.open`, so a plain ``model(**batch)`` works. What
gradient checkpointing runs again in a backward pass gets the context of the forward whose output is being
differentiated: autograd finishes the later of two forwards before it comes to the output of the earlier. A
forward without gradients in between, such as that of a reference policy, takes nothing away.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe_adapt.routing.context import Delivery, RouteContext, SiteKey, in_backward
from moe_adapt.routing.embeddings import token_embeddings
from moe_adapt.routing.stacks import Stack

__all__ = ["RoutingSession", "with_gradient"]


def with_gradient(output: Any) -> Iterator[Tensor]:
    """Yield the tensors with a gradient in the output of a model: a loss may be made of any of them."""
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, dict | list | tuple):
        for value in output.values() if isinstance(output, dict) else output:
            yield from with_gradient(value)


class RoutingSession:
    """Opens a `RouteContext` per model forward; shared by a model and its adapted layers.

    Attributes:
        context: The context of the latest forward.
        tracing: Whether to record in evaluation mode too.
        sample_scores: Score of every expert for each sample of the next batches, [B, E], for `SampleScore`.
        bare: Whether adapted layers are their base alone, while features are looked up.
        named: Adapters that the batch names (`adapter_names`); None if it names none.
        told: Ids of experts or domains that `generate` got, for all its forwards.
        aux_scale: Factor of auxiliary losses that no loss carries, such as one over accumulation steps.
        offsets: What to add to the logits of a site, [E], by adapter and site (`moe_adapt.tuner.offsets`).
    """

    def __init__(self) -> None:
        self.context: RouteContext | None = None
        self.tracing = False
        self.progress_kept = False
        self._progress = 1.0
        self.sample_scores: Tensor | None = None
        self.bare = False
        self.named: list[str] | None = None
        self.told: dict[str, Any] = {}
        self.aux_scale = 1.0
        #: Experts that the next forwards select again, bool [N, E] by site visit (`RouteContext.replayed`).
        self.replay: Mapping[SiteKey, Tensor] | None = None
        self.offsets: dict[tuple[str, str], Tensor] = {}
        self.sums: dict[tuple[str, str, str], Tensor] = {}
        #: Modules with the tensors that all sites of an adapter share (`moe_adapt.tuner.common`).
        self.common: Any = None
        self._differentiable: RouteContext | None = None
        self._delivery: Delivery | None = None

    @property
    def progress(self) -> float:
        """Share of the task's optimizer steps that are done, for schedules in routers and losses."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress, self.progress_kept = value, True

    def open(self, model: torch.nn.Module, inputs: dict[str, Any]) -> None:
        """Start a forward of `model` with the named `inputs`, `domain_ids` [B] among them if known."""
        if in_backward():
            return
        self.context = RouteContext(
            training=model.training,
            recording=model.training or self.tracing,
            progress=self._progress,
            domain_ids=inputs.get("domain_ids", self.told.get("domain_ids")),
            sums=self.sums,
            sample_scores=self.sample_scores,
            stack=Stack.of_call(inputs),
            adapter_ids=inputs.get("adapter_ids", self.told.get("adapter_ids")),
            replay=self.replay,
        )
        self.context.offsets = self.offsets
        self.context.embeddings = partial(token_embeddings, model)

    def close(self, output: Any = None) -> None:
        """End a forward: if it can be differentiated, a recomputation belongs to it from now on.

        Args:
            output: What the model returns. When its gradient arrives, a recomputation belongs to it again.
        """
        if self.context is None or not self.context.records or not torch.is_grad_enabled():
            return
        before = self._differentiable
        if before is not None and before.delivery is not None and before.delivery.spent:
            for unmark in before.unmark:
                unmark()
        self._differentiable = self.context
        if not torch.compiler.is_compiling():
            for tensor in with_gradient(output):
                tensor.register_hook(partial(self._come_to, self.context))

    def _come_to(self, context: RouteContext, grad: Tensor) -> None:
        self._differentiable = context

    def current(self, training: bool) -> RouteContext:
        """Return the open context, or an empty one for a layer that is called by itself."""
        if self._differentiable is not None and in_backward():
            return self._differentiable
        return self.context if self.context is not None else RouteContext(training=training)

    def recorded(self) -> RouteContext:
        """Return the context of the last forward.

        Raises:
            RuntimeError: If it recorded nothing.
        """
        if self.context is None or not self.context.recording:
            raise RuntimeError(
                "no forward was recorded; run one in training mode or inside `with tuner.record():`."
            )
        return self.context

    def delivery(self) -> Delivery:
        """Return what the auxiliary loss of this forward shares with others before the same backward."""
        if self._delivery is None or self._delivery.spent:
            self._delivery = Delivery(self.aux_scale)
        self._delivery.forwards += 1
        return self._delivery

    @contextmanager
    def replaying(self, selected: Mapping[SiteKey, Tensor]):
        """Let sampled selections be those of an earlier forward while the block runs.

        Args:
            selected: Selection of each site visit, bool [N, E].
        """
        self.replay = selected
        try:
            yield
        finally:
            self.replay = None

    @contextmanager
    def record(self):
        """Record decisions in evaluation mode while the block runs."""
        before, self.tracing = self.tracing, True
        try:
            yield
        finally:
            self.tracing = before

    def __deepcopy__(self, memo: dict) -> "RoutingSession":
        copy = RoutingSession()
        memo[id(self)] = copy
        copy.tracing, copy._progress, copy.progress_kept = self.tracing, self._progress, self.progress_kept
        copy.common = deepcopy(self.common, memo)
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return RoutingSession().__dict__ | {
            "tracing": self.tracing,
            "_progress": self._progress,
            "progress_kept": self.progress_kept,
            "common": self.common,
        }
