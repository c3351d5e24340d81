r"""Routing-score regularisation: make tokens belong to the new or to the old experts, not to both.

On the scorer's raw scores, before any guidance masks them, with `v` their softmax over the `k` best at
temperature `T` and `g_new`, `g_old` its sums over the two groups:

$$L_{exc} = g_{old}\, g_{new}, \qquad
L_{spe} = -\big[y \log g_{new} + (1 - y) \log(1 - g_{new})\big], \qquad
y = 1 - \max_{e \in old} v_e \text{ (no gradient)}$$

averaged over unpadded tokens and then over sites, times a ramp that is 0 for the first half of a task and
then rises to 1. Since `y >= g_new`, the second term only ever moves mass *towards* new experts, and the
first away from an even split in either direction: this is a plasticity term; the brake is the token
assignment. With one group it is 0. A modifier has to tell the groups apart: ``token_assignment``, or
``expert_groups``, which does nothing else.

The released code averages over a fixed number of layers and masks with -1e9; the mean here is over the
sites there are.

Reference:
    DyMoE, arXiv 2603.27481.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.records import RecordGroup

__all__ = ["RoutingSeparationLoss", "group_mass", "ramp", "separation_terms"]

_TINY = 1e-8


def ramp(progress: float, start: float) -> float:
    """Return the weight at a share of the task: 0 until `start`, then linear to 1.

    >>> [ramp(progress, 0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.5, 1.0]
    """
    return min(1.0, max(0.0, (progress - start) / (1 - start)))


def group_mass(scores: Tensor, newest: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the mass of the new experts, and the largest share of a single old one, [..., N] each.

    Args:
        scores: Raw scores, [..., N, E].
        newest: Whether each expert is of the newest group, bool [E].
        k: Experts that share the mass.
        temperature: Softmax temperature `T`.
    """
    best = scores.topk(min(k, scores.shape[-1]), dim=-1)
    kept = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values)
    shares = (kept / temperature).softmax(-1)
    return shares[..., newest].sum(-1), shares[..., ~newest].amax(-1)


def separation_terms(new: Tensor, top_old: Tensor) -> tuple[Tensor, Tensor]:
    """Return `L_exc` and `L_spe` per token for the masses that `group_mass` gives.

    >>> exclusivity, _ = separation_terms(torch.tensor([0.5]), torch.tensor([0.5]))
    >>> exclusivity
    tensor([0.2500])
    """
    target = (1 - top_old).clamp(0, 1).detach()
    rest = 1 - new
    specialization = -(target * new.clamp(min=_TINY).log() + (1 - target) * rest.clamp(min=_TINY).log())
    return new * rest, specialization


@AUX_LOSSES.register("routing_separation")
class RoutingSeparationLoss(AuxLoss):
    """Exclusivity and specialisation of expert groups.

    Args:
        weight: Coefficient in the total loss.
        exclusivity: Relative weight of `L_exc`.
        specialization: Relative weight of `L_spe`.
        k: Experts that share the mass of a token.
        temperature: Softmax temperature of the scores.
        start: Share of the task after which the ramp begins.

    Raises:
        UserError: If an option is out of range; in training, if no modifier tells groups of experts apart.
    """

    reference = "DyMoE, arXiv 2603.27481"

    def __init__(
        self,
        weight: float = 1e-3,
        exclusivity: float = 1.0,
        specialization: float = 1.0,
        k: int = 16,
        temperature: float = 0.1,
        start: float = 0.5,
    ) -> None:
        super().__init__(weight)
        if temperature <= 0 or k < 1:
            raise UserError(f"routing separation needs a positive temperature and k, got {temperature}, {k}.")
        if not 0 <= start < 1:
            raise UserError(f"the ramp of routing separation starts in [0, 1), got {start}.")
        self.exclusivity, self.specialization = exclusivity, specialization
        self.k, self.temperature, self.start = k, temperature, start

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean over tokens and sites, a scalar."""
        parts = []
        for group in groups:
            weight = ramp(group.progress, self.start)
            for site, expert_groups in enumerate(group.expert_groups):
                if expert_groups is None:
                    raise UserError(
                        "routing_separation needs a modifier that tells groups of experts apart: "
                        "token_assignment, or expert_groups for no more than that."
                    )
                newest = expert_groups == expert_groups.max()
                if bool(newest.all()) or weight == 0:
                    parts.append(0 * group.scores[site].sum())
                    continue
                exc, spe = separation_terms(*group_mass(group.scores[site], newest, self.k, self.temperature))
                value = self.exclusivity * exc + self.specialization * spe
                parts.append(weight * group.token_mean(value[None])[0])
        return torch.stack(parts).mean()
