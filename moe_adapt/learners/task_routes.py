"""What learners that compose adapters share: the block that routes, features there, where samples went."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.learners.growth import TensorStore
from moe_adapt.routing.sample import LdaRouter
from moe_adapt.tuner.blocks import block_features, block_paths, hidden_of

__all__ = ["REFERENCE", "RouteCount", "block_path", "features_at", "task_router", "task_uid"]

REFERENCE = "no paper: adapters trained apart, composed by a router of ours"


class _Reached(Exception):
    """The model has run as far as the router's block."""


def block_path(model: nn.Module, block: int | None) -> str | None:
    """Return the path of the block that samples are routed on; None if there are none and none is asked for.

    Raises:
        UserError: If there is no such block.
    """
    try:
        paths = block_paths(model)
    except UserError:
        if block is None:
            return None
        raise
    if block is not None and not 1 <= block <= len(paths):
        raise UserError(f"the encoder has blocks 1 to {len(paths)}, not {block}; choose one of them.")
    return paths[(len(paths) + 1) // 2 - 1 if block is None else block - 1]


def features_at(
    model: nn.Module, path: str, run: Callable[[], Any], mask: Callable[[], Tensor | None]
) -> Tensor:
    """Return the mean hidden states that a block gives, [B, d]; the rest of the model does not run.

    Args:
        model: The model without adapters around it.
        path: Path of the block.
        run: Runs the model.
        mask: Says which tokens are real, [B, S], once the model ran; None if all are.

    Raises:
        UserError: If the model never runs that block.
    """
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple, output: Any) -> None:
        seen.append(hidden_of(output))
        raise _Reached

    handle = model.get_submodule(path).register_forward_hook(stop)
    try:
        run()
    except _Reached:
        real = mask()
        return block_features(seen[0], None if real is None else real.bool())
    finally:
        handle.remove()
    raise UserError(f"the encoder never runs its block {path}; choose another block.")


def task_uid(task: int) -> str:
    """Return the name of a task in a router, which sorts names: in the order of tasks."""
    return f"{task:05d}"


def task_router(moments: TensorStore, shrinkage: float | None) -> LdaRouter:
    """Return a router over tasks with its statistics, on the CPU."""
    router = LdaRouter(shrinkage)
    router.load({name: moments[name].cpu() for name in moments})
    return router


class RouteCount:
    """Where test samples went since the last task ended."""

    def __init__(self) -> None:
        self._routed: Counter[tuple[int, int]] = Counter()

    def clear(self) -> None:
        """Forget what was counted."""
        self._routed.clear()

    def add(self, own: Sequence[int], went: Sequence[int]) -> None:
        """Count samples by their own task and the one that answered."""
        self._routed.update(zip(own, went, strict=True))

    def report(self, tasks: int) -> dict[str, float]:
        """Return shares; nothing if no sample was counted.

        ``routed_to_own_task`` is the share that went to its own task: what is missing to 1 is all that can be
        forgotten. ``routes/<t>`` is the share of all samples that task `t` answers, ``kept/<t>`` the share of
        its own samples that still reach it.

        Args:
            tasks: How many tasks there are.
        """
        total = sum(self._routed.values())
        if not total:
            return {}
        found = {"routed_to_own_task": sum(n for (own, to), n in self._routed.items() if own == to) / total}
        for task in range(tasks):
            owned = sum(n for (own, _), n in self._routed.items() if own == task)
            found[f"routes/{task}"] = sum(n for (_, to), n in self._routed.items() if to == task) / total
            if owned:
                found[f"kept/{task}"] = self._routed.get((task, task), 0) / owned
        return found
