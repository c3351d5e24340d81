r"""DyMoE's auxiliary loss: equal use of the newest experts, by the tokens that they were given.

$$L_{aux} = E_{new} \sum_{e \in new} f_e\, P_e$$

with the means over *admitted* tokens (those whose new experts `token_assignment` does not mask): `P` of the
router's probabilities among the new experts, `f` of the share of selections, without gradient. It is 1 when
the new experts are used alike, `E_new` when one takes everything, and 0 where no token was admitted.

With as many experts per token as there are new ones every admitted token selects all of them, `f` is constant
and so is the loss: the learner refuses that. The paper has the term in its loss and its ablation without
saying its weight, and its released code lacks it; so it is off unless it is asked for.

Reference:
    DyMoE, arXiv 2603.27481; the form of the loss is that of Switch Transformers, arXiv 2101.03961.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.records import RecordGroup

__all__ = ["NewExpertBalanceLoss", "balance_of_admitted"]


def balance_of_admitted(logits: Tensor, selected: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the loss of one site, a scalar.

    Args:
        logits: Logits of the new experts, minus infinity for tokens that must not use them, [N, E_new].
        selected: Which of them were selected, bool [N, E_new].
        mask: True for real tokens, bool [N]; None if there is no padding.

    >>> selected = torch.tensor([[True, False], [True, False]])
    >>> balance_of_admitted(torch.tensor([[0.0, -50.0], [0.0, -50.0]]), selected)
    tensor(2.)
    """
    admitted = torch.isfinite(logits).all(-1)
    if mask is not None:
        admitted = admitted & mask
    weight = admitted.to(logits.dtype)[:, None]
    probs = logits.masked_fill(~admitted[:, None], 0.0).softmax(-1)
    used = (selected * weight).sum(0)
    share = used / used.sum().clamp(min=1)
    return logits.shape[-1] * (share * (probs * weight).sum(0) / weight.sum().clamp(min=1)).sum()


@AUX_LOSSES.register("new_expert_balance")
class NewExpertBalanceLoss(AuxLoss):
    """Pushes the router towards equal use of the newest experts; of all where groups are not told apart.

    Args:
        weight: Coefficient in the total loss.
    """

    reference = "DyMoE, arXiv 2603.27481"

    def __init__(self, weight: float = 1e-3) -> None:
        super().__init__(weight)

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean over sites, a scalar."""
        parts = []
        for group in groups:
            for site, of_expert in enumerate(group.expert_groups):
                newest = slice(None) if of_expert is None else of_expert == of_expert.max()
                found = group.logits[site][:, newest], group.selected[site][:, newest]
                parts.append(balance_of_admitted(*found, group.mask))
        return torch.stack(parts).mean()
