r"""Trust regions: inside the subspaces of related old tasks a router may rescale what it has, not rewrite it.

The strict rule forbids old directions also where an old task could help. TRGP picks, at the start of a
task, at most two old tasks whose subspace `V_j` holds much of the gradient, and there learns a `k x k`
scale `Q` (from the identity) in `W V_j Q V_j^T` instead of nothing. One gradient step on `Q` moves the
weight by `-eta W V V^T W^T G V V^T`; as a transform of the final update this is

$$\Delta \mapsto \Delta (I - V V^T) + S\, \Delta V_j V_j^T, \qquad
S = \frac{(W V_j)(W V_j)^T}{\lVert W V_j \rVert_2^2},$$

normalised so that it never exceeds the plain update. `W` is the weight at the start of the task.

The original keeps one `Q` per task and asks for the task id at test; folded into the weight, as here, the
old task keeps the column space of its scores but not their values.

Reference:
    Lin, Yang, Fan, Zhang, "TRGP: Trust Region Gradient Projection for Continual Learning", arXiv 2202.02931.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.optim.base import ROUTER_UPDATES
from moe_adapt.optim.moment import InputMoment
from moe_adapt.optim.router import StrictUpdate

__all__ = ["TrustUpdate", "relatedness", "trust_gain"]


def relatedness(update: Tensor, vectors: Tensor) -> float:
    """Return the share of an update's norm that lies in a subspace, in [0, 1].

    Args:
        update: An update, [E, d].
        vectors: Orthonormal basis of the subspace, [d, k].
    """
    return float((update @ vectors).norm() / update.norm().clamp(min=torch.finfo(update.dtype).tiny))


def trust_gain(weight: Tensor, vectors: Tensor) -> Tensor:
    """Return `S` [E, E] for the weight [E, d] at the start of a task and a subspace [d, k]."""
    inside = weight @ vectors
    gram = inside @ inside.t()
    return gram / torch.linalg.matrix_norm(gram, ord=2).clamp(min=torch.finfo(gram.dtype).tiny)


@ROUTER_UPDATES.register("trust")
class TrustUpdate(StrictUpdate):
    """Strict outside, rescaling inside the subspaces of related old tasks.

    Args:
        delta: Share of the energy that is protected from the second task on.
        delta_max: Share approached as tasks go by.
        delta_step: Growth of the share per task.
        related: Most old tasks that are trusted.
        threshold: Least share of the first update inside a task's subspace for it to be related.
    """

    reference = "TRGP, Lin et al. 2022, arXiv 2202.02931"

    def __init__(
        self,
        delta: float = 0.95,
        delta_max: float = 0.99,
        delta_step: float = 0.005,
        related: int = 2,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(delta, delta_max, delta_step)
        if related < 0:
            raise UserError(f"the number of trusted tasks is not negative, got {related}.")
        self.related, self.threshold = related, threshold
        self.subspaces: list[Tensor] = []
        self._trusted: list[tuple[Tensor, Tensor]] | None = None

    def prepare(self, moment: InputMoment, task: int) -> None:
        """Choose related tasks at the first step."""
        super().prepare(moment, task)
        self._trusted = None

    def finish(self, moment: InputMoment) -> None:
        """Keep the subspace of the task that ends."""
        spectrum = moment.spectrum("current")
        if spectrum is not None:
            self.subspaces.append(spectrum.vectors[:, : spectrum.rank(self.delta)])

    def state(self) -> dict[str, Tensor]:
        """Return the subspaces of the finished tasks, and what the task under way trusts."""
        state = {f"subspace{number}": vectors for number, vectors in enumerate(self.subspaces)}
        for number, (vectors, gain) in enumerate(self._trusted or []):
            state |= {f"trusted{number}": vectors, f"gain{number}": gain}
        return state | ({} if self._trusted is None else {"chosen": torch.ones(())})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        self.subspaces = [state[f"subspace{n}"] for n in range(_count(state, "subspace"))]
        trusted = [(state[f"trusted{n}"], state[f"gain{n}"]) for n in range(_count(state, "trusted"))]
        self._trusted = trusted if "chosen" in state else None

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the corrected update."""
        if self._trusted is None:
            ranked = sorted(self.subspaces, key=lambda vectors: -relatedness(delta, vectors))
            near = [v for v in ranked[: self.related] if relatedness(delta, v) >= self.threshold]
            self._trusted = [(vectors, trust_gain(before, vectors)) for vectors in near]
        kept = super().after_step(delta, before)
        for vectors, gain in self._trusted:
            kept = kept + gain @ (delta @ vectors) @ vectors.t()
        return kept


def _count(state: Mapping[str, Tensor], name: str) -> int:
    return sum(key.startswith(name) for key in state)
