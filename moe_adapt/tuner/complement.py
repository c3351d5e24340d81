"""Freeze an adapter's pool and let one new expert, which every token uses, learn beside it."""

from moe_adapt.tuner.edit import add_experts
from moe_adapt.tuner.edit_operation import Optimizer, PoolOperation
from moe_adapt.tuner.model import RoutedLoraModel

__all__ = ["add_complement"]


def add_complement(
    tuner: RoutedLoraModel,
    uid: str = "complement",
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Add an always-on expert to an adapter; the outputs are as before until it has learned something.

    All older experts freeze bit for bit and keep their selector, which becomes the inner one of the selector
    ``complement`` (`moe_adapt.routing.selectors.complement`). The routers go on learning; give them the
    learning rate 0 to keep the routing as it is.

    Args:
        tuner: The tuner.
        uid: Name of the new expert.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.

    Raises:
        UserError: If the name is taken, or the experts share a down-projection and cannot freeze.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    pool.new_names(1, [uid])
    for layer in pool.layers:
        layer.refuse_shared(pool.adapter)
    pool.config.selector = {"name": "complement", "inner": pool.config.selector}
    add_experts(tuner, 1, [uid], adapter_name, optimizer, freeze_others=True)
