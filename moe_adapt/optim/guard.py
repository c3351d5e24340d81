r"""GRIP's guard: router updates under which retained inputs keep the experts that they selected.

For a retained input `x`, its `K` selected experts and their smallest score `s(x)`, the row `w_j` of expert
`j` may move by `u` only if

* `u x = 0` for retained inputs that selected `j` (directions with squared singular value above `cutoff`);
* `(w_j + u) x <= s(x) - margin` for those that did not.

The second is met by Kaczmarz steps. As published they leave the null space of the first; here a step goes
along `P x / (x P x)` with the projector `P`, which stays inside. Two departures more: instead of a random
violated row the most violated one is taken, and what sweeps do not settle is settled by shortening `u`
until every inequality holds, so that the selection of retained inputs never changes. The bound is on the
row, not on the step: margins do not wear off over a thousand steps.

The retained inputs are stored data and count as memory. The same hook serves unlearning: retain what must
keep its routing, and ascend on what is to be forgotten, so that it cannot be "forgotten" by merely being
sent elsewhere.

Reference:
    Zhu et al., "GRIP: Algorithm-Agnostic Machine Unlearning for Mixture-of-Experts via Geometric Router
    Constraints", arXiv 2601.16905, from a third-party port; the official code was not available.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.optim.base import ROUTER_UPDATES, RouterUpdate

__all__ = ["GuardUpdate", "feasible_share", "null_space_bases", "select_top", "selection_stability"]


def select_top(scores: Tensor, k: int) -> Tensor:
    """Return the `k` largest of each row as a mask, bool [N, E]; ties go to the lower index."""
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def selection_stability(rows: Tensor, before: Tensor, after: Tensor, k: int) -> float:
    """Return the share of inputs whose selected set is the same under two routers.

    Args:
        rows: Inputs, [N, d].
        before: Router rows, [E, d].
        after: Router rows, [E, d].
        k: Experts selected per input.
    """
    return float((select_top(rows @ before.t(), k) == select_top(rows @ after.t(), k)).all(-1).float().mean())


def null_space_bases(rows: Tensor, selected: Tensor, cutoff: float) -> Tensor:
    """Return what each expert must not move along, [E, d, k], padded with zero columns.

    Args:
        rows: Retained inputs, [N, d].
        selected: What they selected, bool [N, E].
        cutoff: Least squared singular value that counts.
    """
    bases = []
    for expert in range(selected.shape[1]):
        chosen = rows[selected[:, expert]]
        values, vectors = torch.linalg.eigh(chosen.t() @ chosen)
        bases.append(vectors[:, values > cutoff])
    width = max((basis.shape[1] for basis in bases), default=0)
    return torch.stack([torch.nn.functional.pad(basis, (0, width - basis.shape[1])) for basis in bases])


def feasible_share(start: Tensor, change: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the largest `t` in [0, 1] per expert with `low <= start + t change <= high` everywhere, [E].

    Args:
        start: Feasible scores, [E, N].
        change: Their change, [E, N].
        low: Lower bounds, [E, N].
        high: Upper bounds, [E, N].
    """
    room = torch.where(change > 0, high - start, start - low).clamp(min=0)
    share = torch.where(change == 0, torch.inf, room / change.abs())
    return share.amin(dim=1).clamp(max=1.0)


@ROUTER_UPDATES.register("guard")
class GuardUpdate(RouterUpdate):
    """Keeps the selection of retained inputs.

    Args:
        k: Experts selected per input.
        margin: Least distance of an unselected score from the smallest selected one.
        cutoff: Least squared singular value of the selecting inputs that is protected.
        sweeps: Most corrections per expert and step.
        max_inputs: Most retained inputs per layer.
    """

    reference = "GRIP, Zhu et al. 2026, arXiv 2601.16905"

    def __init__(
        self,
        k: int = 2,
        margin: float = 1e-2,
        cutoff: float = 1e-2,
        sweeps: int = 200,
        max_inputs: int = 1024,
    ) -> None:
        if k < 1 or max_inputs < 1:
            raise UserError(f"the guard needs at least one expert and one input, got k={k}, {max_inputs}.")
        if margin < 0:
            raise UserError(f"the guard's margin is not negative, got {margin}.")
        self.k, self.margin, self.cutoff, self.sweeps = k, margin, cutoff, sweeps
        self.max_inputs = max_inputs
        self.rows: Tensor | None = None
        self.weight: Tensor | None = None

    def retain(self, rows: Tensor, weight: Tensor) -> None:
        """Fix the inputs whose selection is to stay, and what they select now.

        Args:
            rows: Inputs of the router, [N, d].
            weight: Its rows, [E, d].

        Raises:
            UserError: If no input could select differently, because all experts are selected.
        """
        if self.k >= len(weight):
            raise UserError(
                f"with k={self.k} of {len(weight)} experts every input selects all of them; the guard needs "
                "a smaller k."
            )
        rows, weight = rows.detach().float().clone(), weight.detach().float().clone()
        scores = rows @ weight.t()
        selected = select_top(scores, self.k)
        least = scores.masked_fill(~selected, torch.inf).amin(-1, keepdim=True)
        most = scores.masked_fill(selected, -torch.inf).amax(-1, keepdim=True)
        gap = (least - most).clamp(min=0)
        # Both sides keep half of a gap that is smaller than the margin, so that the start is feasible.
        reach = torch.minimum(torch.full_like(gap, self.margin), gap / 2)
        self.rows, self.weight = rows, weight
        self.high = torch.where(selected, torch.inf, least - reach).t()
        self.low = torch.where(selected, least - reach / 2, -torch.inf).t()
        self.bases = null_space_bases(rows, selected, self.cutoff)

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the largest correction of the update that keeps every retained selection."""
        if self.rows is None:
            return delta
        update = self._inside(delta.float())
        start = before.float() @ self.rows.t()
        for _ in range(self.sweeps):
            excess = start + update @ self.rows.t() - self.high
            worst, which = excess.max(dim=1)
            if not bool((worst > 0).any()):
                break
            x = self.rows[which]
            inside = self._inside(x)
            size = (x * inside).sum(-1)
            movable = (worst > 0) & (size > self.cutoff * 1e-2)
            if not bool(movable.any()):
                break
            step = torch.where(movable, -worst / size.clamp(min=1e-12), 0.0)
            update += step[:, None] * inside
        share = feasible_share(start, update @ self.rows.t(), self.low, self.high)
        return (update * share[:, None]).to(delta.dtype)

    def _inside(self, rows: Tensor) -> Tensor:
        """Project one row per expert [E, d] off what that expert must not move along."""
        along = torch.einsum("ed,edk->ek", rows, self.bases)
        return rows - torch.einsum("ek,edk->ed", along, self.bases)

    def state(self) -> dict[str, Tensor]:
        """Return the retained inputs and the router that they were retained with."""
        return {} if self.rows is None else {"rows": self.rows, "weight": self.weight}  # type: ignore[dict-item]

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        if "rows" in state:
            self.retain(state["rows"], state["weight"])

    @property
    def nbytes(self) -> int:
        """Bytes of the retained inputs and of what is derived from them."""
        if self.rows is None:
            return 0
        kept = (self.rows, self.high, self.low, self.bases)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)
