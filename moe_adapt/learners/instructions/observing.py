"""Watching adapted layers: what they see and how they gate, without touching the model.

A forward hook on every adapted layer hands its inputs without padding, and the routing record if there is
one, to a callback; recomputation by gradient checkpointing is left out.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from moe_adapt.routing import RoutingRecord
from moe_adapt.routing.context import in_backward
from moe_adapt.tuner.layer import RoutedLoraLayer

__all__ = ["LayerInput", "watch_layers"]


class LayerInput(NamedTuple):
    """What a layer saw in one forward.

    Attributes:
        layer: The layer.
        rows: The input without padding, [N, d].
        mask: Which tokens those are, bool [all tokens]; None if all.
        record: The routing, over all tokens; None if nothing is recorded.
    """

    layer: RoutedLoraLayer
    rows: Tensor
    mask: Tensor | None
    record: RoutingRecord | None

    def gates(self) -> Tensor | None:
        """Return the gates of the rows, [N, E], if there is a record."""
        if self.record is None:
            return None
        return self.record.gates if self.mask is None else self.record.gates[self.mask]


def watch_layers(
    layers: Iterable[RoutedLoraLayer], watcher: Callable[[LayerInput], None], adapter: str = "default"
) -> list[RemovableHandle]:
    """Call `watcher` after every forward of every layer.

    Args:
        layers: The layers.
        watcher: What to call.
        adapter: Whose records to hand over.
    """

    def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if in_backward() or layer.disable_adapters:
            return
        context = layer.session.current(layer.training)
        x = args[0]
        rows, mask = x.detach().reshape(-1, layer.in_features), context.arrive(layer.site, x)
        kept = rows if mask is None else rows[mask]
        watcher(LayerInput(layer, kept, mask, context.records.get((adapter, layer.site, 0))))

    return [layer.register_forward_hook(hook) for layer in layers]
