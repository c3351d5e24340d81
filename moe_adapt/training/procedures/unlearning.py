r"""Unlearning by gradient ascent, with routers that cannot cheat (GRIP).

A batch has rows to forget and rows to retain, told apart by their domain. With the mean losses `L_f` and
`L_r` of the two

$$L = L_r - \alpha \min(L_f, c)$$

and auxiliary losses on the retained rows. The ceiling `c` stops the ascent where the model knows nothing:
without it the loss grows for ever, and rows that are worse than unseen ones give away that they were
forgotten.

Routers can lower `L` without forgetting, by sending the rows elsewhere; the knowledge stays in experts that
other inputs reach. With ``guard`` every update of a router's rows is corrected so that retained inputs keep
the experts that they selected (`moe_adapt.optim.guard`); they are the inputs of each adapted layer when the
fit begins. The promise is about those inputs. Experts move, so deeper layers may get others.

Departure: the guard is GRIP's rule as `moe_adapt.optim.guard` has it (from a third-party port); the ceiling
and the mixture of both kinds of rows in one batch are ours.

Reference:
    Zhu et al., "GRIP: Algorithm-Agnostic Machine Unlearning for Mixture-of-Experts via Geometric Router
    Constraints", arXiv 2601.16905.
"""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.learners.instructions.observing import LayerInput, watch_layers
from moe_adapt.optim import GuardUpdate, UpdateHook
from moe_adapt.optim.guard import selection_stability
from moe_adapt.training.procedures.base import PROCEDURES, Procedure, aux_loss
from moe_adapt.tuner.layer import RoutedLoraLayer, adapted_layers

if TYPE_CHECKING:
    from moe_adapt.training.modules.base import AdaptedModule, Batch

__all__ = ["Unlearn", "guarded_sites", "select_rows", "site_inputs"]


def select_rows(batch: "Batch", rows: Tensor) -> "Batch":
    """Return some rows of a batch without their domains, which are no domains of the routers here.

    Args:
        batch: The batch; every tensor has a row per sample.
        rows: Which rows, bool [B].
    """
    if any(len(values) != len(rows) for values in batch.values()):
        raise UserError("unlearning takes batches with one row per sample, not multiple choice.")
    return {name: values[rows] for name, values in batch.items() if name != "domain_ids"}


def guarded_sites(module: "AdaptedModule") -> dict[str, tuple[RoutedLoraLayer, nn.Parameter, int]]:
    """Return the layers whose routers a guard can hold: layer, trainable rows [E, d], and experts per token.

    Args:
        module: The module.
    """
    found: dict[str, tuple[RoutedLoraLayer, nn.Parameter, int]] = {}
    for layer in [] if module.tuner is None else adapted_layers(module.model):
        for adapter, router in layer.routers.items():
            rows, experts = router.rows(layer), layer.specs[adapter].num_experts
            kept = router.skeleton.selector.slots(experts)
            plain = isinstance(rows, nn.Parameter) and len(router.skeleton.modifiers) == 0
            if plain and kept is not None and kept < experts:
                found[layer.site] = (layer, cast(nn.Parameter, rows), kept)
    return found


@torch.no_grad()
def site_inputs(module: "AdaptedModule", batches: Iterable["Batch"], most: int) -> dict[str, Tensor]:
    """Return inputs of every layer that a guard can hold, [N, d] by site, without padding.

    Args:
        module: The module; it runs in evaluation mode and is left as it was.
        batches: Batches for it.
        most: Most inputs per layer, drawn from four times as many.

    Raises:
        UserError: If there are no batches.
    """
    found: dict[str, list[Tensor]] = {}

    def watch(seen: LayerInput) -> None:
        found.setdefault(seen.layer.site, []).append(seen.rows.float())

    handles = watch_layers([layer for layer, _, _ in guarded_sites(module).values()], watch)
    training = module.training
    module.eval()
    try:
        for batch in batches:
            module.task_loss(move_data_to_device(batch, module.device))
            if min(sum(map(len, rows)) for rows in found.values()) >= 4 * most:
                break
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    if not found:
        raise UserError("there are no rows to retain, so nothing says which routing is to stay.")
    chosen = {}
    for site, rows in found.items():
        inputs = torch.cat(rows)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        chosen[site] = inputs[order[:most].to(inputs.device)]
    return chosen


@PROCEDURES.register("unlearn")
class Unlearn(Procedure):
    """Ascends on rows to forget, descends on rows to retain.

    Args:
        forget: Domain of the rows to forget: its name in `domain_column`, or its number.
        ascent: Weight of the rows to forget. Higher: they are forgotten in fewer steps.
        ceiling: Loss in nats at which forgetting stops; None for that of a guess, `log C`. Higher: rows to
            forget get worse than unseen ones.
        guard: Whether retained inputs keep the experts that they selected.
        max_inputs: Most retained inputs per layer that the guard holds. Higher: less freedom for routers.

    Raises:
        UserError: If a number is out of range.
    """

    reference = "GRIP, Zhu et al. 2026, arXiv 2601.16905"

    def __init__(
        self,
        forget: str | int = "forget",
        ascent: float = 1.0,
        ceiling: float | None = None,
        guard: bool = True,
        max_inputs: int = 1024,
    ) -> None:
        if ascent <= 0 or (ceiling is not None and ceiling <= 0) or max_inputs < 1:
            raise UserError("unlearning needs ascent > 0, ceiling > 0 and at least one retained input.")
        self.forget, self.ascent, self.ceiling = forget, ascent, ceiling
        self.guard, self.max_inputs = guard, max_inputs
        self._guards: dict[str, GuardUpdate] = {}
        self._held: dict[str, tuple[Tensor, Tensor]] | None = None

    def attach(self, module: "AdaptedModule", optimizer: torch.optim.Optimizer) -> None:
        """Put guards around the steps of a new optimizer; they hold nothing yet.

        Raises:
            UserError: If there is no router that a guard can hold.
        """
        self._guards, self._held = {}, None
        if not self.guard:
            return
        held = {}
        for site, (_, rows, kept) in guarded_sites(module).items():
            self._guards[site] = GuardUpdate(k=kept, max_inputs=self.max_inputs)
            held[site] = (rows, [self._guards[site]])
        if not held:
            raise UserError(
                "the guard holds linear routers that keep a fixed number of experts per token, such as those "
                "of the method top_k; this adapter has none, so unlearn without the guard."
            )
        UpdateHook(held).attach(optimizer)

    def _hold(self, module: "AdaptedModule") -> None:
        """Note what retained training rows select now, for the guards and for `stability`."""
        if self.guard and module.global_step:
            raise UserError(
                "what the guard holds is in no checkpoint, so unlearning cannot be resumed: start it again."
            )
        sites, batches = guarded_sites(module), cast(Any, module.trainer.train_dataloader)
        with torch.random.fork_rng():
            inputs = site_inputs(module, self._retained(module, batches), self.max_inputs) if sites else {}
        self._held = {site: (inputs[site], rows.detach().clone()) for site, (_, rows, _) in sites.items()}
        for site, guard in self._guards.items():
            guard.retain(*self._held[site])

    def stability(self, module: "AdaptedModule") -> float | None:
        """Return the share of noted inputs that still select what they selected, over all layers.

        Args:
            module: The module, after the fit. None comes back if nothing was noted.
        """
        held = self._held or {}
        shares = [
            selection_stability(held[site][0], held[site][1].float(), rows.detach().float(), k)
            for site, (_, rows, k) in guarded_sites(module).items()
            if site in held
        ]
        return sum(shares) / len(shares) if shares else None

    def _retained(self, module: "AdaptedModule", batches: Iterable[Any]) -> Iterator["Batch"]:
        for batch in batches:
            kept = ~self._to_forget(module, batch)
            if bool(kept.any()):
                yield select_rows(batch, kept)

    def _to_forget(self, module: "AdaptedModule", batch: "Batch") -> Tensor:
        """Return which rows of a batch are to be forgotten, bool [B]."""
        if "domain_ids" not in batch:
            raise UserError("rows to forget are told by their domain: set data.domain_column.")
        number = self.forget
        if isinstance(number, str):
            names = list(module.trainer.datamodule.domains.names)  # type: ignore[attr-defined]
            if number not in names:
                raise UserError(f"no row has the domain {number!r}; the domains are {', '.join(names)}.")
            number = names.index(number)
        return batch["domain_ids"] == number

    def _ceiling(self, module: "AdaptedModule") -> float:
        if self.ceiling is not None:
            return self.ceiling
        config: Any = module.model.config
        return math.log(getattr(module, "num_classes", None) or config.vocab_size)

    def step(self, module: "AdaptedModule", batch: "Batch") -> Tensor:
        """Return the loss of the rows to retain, less that of the rows to forget."""
        if self._held is None and module._trainer is not None:
            self._hold(module)
        gone = self._to_forget(module, batch)
        loss, logged = torch.zeros((), device=gone.device), {}
        if bool(gone.any()):
            forgotten = module.task_loss(select_rows(batch, gone))
            loss = loss - self.ascent * forgotten.clamp(max=self._ceiling(module))
            logged["train/forget_loss"] = forgotten.detach()
        if not bool(gone.all()):
            retained = module.task_loss(select_rows(batch, ~gone))
            loss = loss + retained + aux_loss(module)
            logged["train/retain_loss"] = retained.detach()
        module.log_dict(logged, batch_size=len(gone))
        return loss
