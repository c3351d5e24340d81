r"""Robust experts and robust routers, trained in turns against one attack on both (AdvMoE).

A perturbation moves an input to where both the answer and the routing change most. Per batch

1. attack, then step the experts and the head on $L(x) + \lambda\, KL(p(x)\,\|\,p(x'))$;
2. attack anew, then step the routers on the same plus $\lambda\, KL(\rho(x)\,\|\,\rho(x'))$,

with the answer's probabilities `p`, router probabilities `rho` (mean over layers and tokens) and the attacked
input `x'`. The attack takes `steps` signed gradient steps on both divergences, in a box around the input.

The box is `eps` standard deviations of the input wide, per element: pixels of an image, or the embeddings of
a text's tokens, which are the input of everything adapted. It does not know the range of pixels.

Departures: the release trains routers towards the expert ``label mod E``, an arbitrary target that the
paper's abstract does not name; here they keep the task loss. Its perturbation is in units of 1/255.

Reference:
    Zhang et al., "Robust Mixture-of-Expert Training for Convolutional Neural Networks", arXiv 2308.10110;
    code OPTML-Group/Robust-MoE-CNN.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.routing import AuxLoss, RecordGroup
from moe_adapt.routing.embeddings import token_embeddings
from moe_adapt.training.procedures.base import PROCEDURES, Procedure, aux_loss, update

if TYPE_CHECKING:
    from moe_adapt.training.modules.base import AdaptedModule, Batch

__all__ = ["AdvMoE", "RouterShift", "attack", "divergence", "perturbed"]


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """Return the mean over rows of `KL(softmax(clean) || softmax(other))`, a scalar.

    Args:
        clean: Logits, [..., C].
        other: Logits, [..., C].
    """
    log_p, log_q = F.log_softmax(clean, dim=-1), F.log_softmax(other, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


class RouterShift(AuxLoss):
    """How far router probabilities are from those of an earlier forward of the same inputs.

    Args:
        clean: Decisions of the earlier forward.
        weight: Coefficient; below zero it is driven up.
    """

    def __init__(self, clean: Sequence[RecordGroup], weight: float) -> None:
        super().__init__(weight)
        self.clean = [group.logits.detach() for group in clean]

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean divergence over sites and unpadded tokens."""
        total, sites = groups[0].logits.new_zeros(()), 0
        for clean, group in zip(self.clean, groups, strict=True):
            log_p, log_q = F.log_softmax(clean, dim=-1), F.log_softmax(group.logits, dim=-1)
            total = total + group.token_mean((log_p.exp() * (log_p - log_q)).sum(dim=-1)).sum()
            sites += len(clean)
        return total / sites


@contextmanager
def perturbed(module: "AdaptedModule", batch: "Batch", delta: Tensor | None) -> "Iterator[Batch]":
    """Give a batch whose input is moved by `delta` while the block runs.

    Args:
        module: The module.
        batch: The batch.
        delta: Change of ``pixel_values``, or of the embeddings of ``input_ids``; None for none.
    """
    if delta is None or "pixel_values" in batch:
        yield batch if delta is None else {**batch, "pixel_values": batch["pixel_values"] + delta}
        return
    embeddings: Any = _embeddings(module)
    handle = embeddings.register_forward_hook(lambda _, __, output: output + delta.to(output.dtype))
    try:
        yield batch
    finally:
        handle.remove()


def _embeddings(module: "AdaptedModule") -> Any:
    layer = token_embeddings(module.model)
    if layer is not None:
        return layer
    raise UserError(
        f"{type(module.model).__name__} has neither pixel_values nor input embeddings to perturb."
    )


def _input(module: "AdaptedModule", batch: "Batch") -> Tensor:
    return batch["pixel_values"] if "pixel_values" in batch else _embeddings(module)(batch["input_ids"])


def attack(
    module: "AdaptedModule", batch: "Batch", eps: float, steps: int, rate: float, on_router: bool = True
) -> Tensor | None:
    """Return a perturbation of the input that changes answer and routing; None if `eps` is 0.

    The module answers in evaluation mode, without dropout, and is left as it was; gradients of its parameters
    are dropped.

    Args:
        module: The module.
        batch: The batch.
        eps: Half the width of the box, in standard deviations of the input.
        steps: Gradient steps.
        rate: Size of a step as a share of `eps`.
        on_router: Whether the routing is attacked too.
    """
    if eps == 0:
        return None
    training = module.training
    module.eval()
    with torch.no_grad():
        x = _input(module, batch).detach()
        box = eps * x.float().std()
        delta = (1e-3 * box * torch.randn_like(x, dtype=torch.float32)).to(x.dtype)
    try:
        with _recording(module):
            with torch.no_grad():
                answer = module.scored(batch)[1]
                clean = module.tuner.recorded() if on_router and module.tuner is not None else []
            for _ in range(steps):
                delta.requires_grad_()
                with perturbed(module, batch, delta) as moved:
                    loss = divergence(answer, module.scored(moved)[1])
                if clean:
                    shift = {"shift": RouterShift(clean, weight=1.0)}
                    loss = loss + aux_loss(module, shift, configured=False)
                loss.backward()
                assert delta.grad is not None
                delta = (delta.detach() + rate * box * delta.grad.sign()).clamp(-box, box)
    finally:
        module.zero_grad()
        module.train(training)
    return delta.detach()


@contextmanager
def _recording(module: "AdaptedModule") -> Iterator[None]:
    if module.tuner is None:
        yield
        return
    with module.tuner.record():
        yield


@PROCEDURES.register("adversarial")
class AdvMoE(Procedure):
    """Trains experts and routers in turns on attacked inputs.

    Args:
        eps: Half the width of the attack's box, in standard deviations of the input (0.14 is 8/255 of an
            image normalised as usual). Higher: more robust, less accurate on clean inputs.
        steps: Gradient steps of an attack. Higher: stronger attacks, slower training.
        rate: Size of such a step as a share of `eps`.
        weight: Weight of both divergences. Higher: robustness counts more.

    Raises:
        UserError: If a number is out of range.
    """

    reference = "AdvMoE, Zhang et al. 2023, arXiv 2308.10110"

    steps_per_batch = 2

    def __init__(
        self,
        eps: float = 0.14,
        steps: int = 2,
        rate: float = 0.625,
        weight: float = 6.0,
    ) -> None:
        if eps < 0 or steps < 1 or rate <= 0 or weight < 0:
            raise UserError("an attack needs eps >= 0, at least one step, rate > 0 and weight >= 0.")
        self.eps, self.steps, self.rate, self.weight = eps, steps, rate, weight

    def check(self, module: "AdaptedModule") -> None:
        """Raise `UserError` if there is no router to train in turns with the experts."""
        if not module.trainable_parameters()["router"]:
            raise UserError(
                "the procedure adversarial trains routers and experts in turns, and this model has no "
                "router that learns; take a method with one, such as top_k."
            )

    def losses(self, module: "AdaptedModule", batch: "Batch", router: bool) -> Tensor:
        """Return the loss of one of the two steps.

        Args:
            module: The module, in training mode.
            batch: The batch.
            router: Whether it is the step of the routers.
        """
        delta = attack(module, batch, self.eps, self.steps, self.rate)
        loss, answer = module.scored(batch)
        assert module.tuner is not None
        clean = module.tuner.recorded()
        loss = loss + aux_loss(module)
        if delta is None:
            return loss
        with perturbed(module, batch, delta) as moved:
            attacked = module.scored(moved)[1]
        shift = {"shift": RouterShift(clean, self.weight)} if router else {}
        routing = aux_loss(module, shift, configured=False)
        return loss + self.weight * divergence(answer, attacked) + routing

    def step(self, module: "AdaptedModule", batch: "Batch") -> None:
        """Step the experts and the head, then the routers."""
        for name, roles in (("experts", ("experts", "head")), ("router", ("router",))):
            loss = self.losses(module, batch, name == "router")
            size = len(next(iter(batch.values())))
            module.log(f"train/{name}_loss", loss.detach(), batch_size=size, prog_bar=True)
            update(module, loss, roles)
