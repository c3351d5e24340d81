r"""Load-balance loss: `E sum_i f_i pbar_i`, 1 at perfect balance and `E` when one expert takes everything.

`pbar` is the token mean of the router probabilities; `f` is, by `assignment`,

* `"counts"`: the share of (token, slot) pairs that go to expert `i` (Switch Transformer, arXiv 2101.03961);
* `"gates"`: the token mean of the gates (DynMoLE's released code);
* `"probs"`: `pbar` itself, with a gradient through both factors.

There is no gradient through counts. There is one through gates only if they are not detached, as in DynMoLE's
released code: its gates are probabilities, zero where dropped, and `f` has the gradient of the kept ones.
Padding is excluded. Null experts are interchangeable: each gets the mean of their shares.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.records import RecordGroup

__all__ = ["LoadBalanceLoss"]


def _assignment(group: RecordGroup, kind: str, pbar: Tensor, detach_gates: bool) -> Tensor:
    share = _share(group, kind, pbar, detach_gates)
    if group.nulls == 0:
        return share
    experts, nulls = share.split([group.num_experts - group.nulls, group.nulls], dim=-1)
    return torch.cat([experts, nulls.mean(dim=-1, keepdim=True).expand_as(nulls)], dim=-1)


def _share(group: RecordGroup, kind: str, pbar: Tensor, detach_gates: bool) -> Tensor:
    if kind == "probs":
        return pbar
    if kind == "gates":
        if detach_gates:
            return group.token_mean(group.gates)
        tiny = torch.finfo(group.probs.dtype).tiny
        scale = group.gates / group.probs.detach().clamp(min=tiny)  # 1 for kept experts, if not renormalised
        return group.token_mean(group.probs * scale)
    counts = group.token_mean(group.selected.to(pbar.dtype))
    return counts / counts.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(counts.dtype).tiny)


@AUX_LOSSES.register("load_balance")
class LoadBalanceLoss(AuxLoss):
    """Pushes the router towards equal use of its experts.

    Args:
        weight: Coefficient in the total loss. Higher: a more even load, less specialised experts.
        assignment: What `f` is, see above.
        scope: `"per_site"` balances every site by itself and averages; `"global"` pools the tokens of all
            sites first, as DynMoLE's code does, although expert `i` of one site has nothing to do with expert
            `i` of another.
        detach_gates: Whether gates count as numbers in the gradient of ``gates``. A gate that the selector
            scales, such as a renormalised one, is differentiated with its scale held.

    Raises:
        UserError: If an option is unknown, or gates are not detached where they are not read.
    """

    reference = "Switch Transformer, Fedus et al. 2021, arXiv 2101.03961"

    def __init__(
        self,
        weight: float = 1e-3,
        assignment: Literal["counts", "gates", "probs"] = "counts",
        scope: Literal["per_site", "global"] = "per_site",
        detach_gates: bool = True,
    ) -> None:
        super().__init__(weight)
        if assignment not in ("counts", "gates", "probs"):
            raise UserError(f"load_balance: assignment is 'counts', 'gates' or 'probs', got {assignment!r}.")
        if scope not in ("per_site", "global"):
            raise UserError(f"load_balance: scope is 'per_site' or 'global', got {scope!r}.")
        if not detach_gates and assignment != "gates":
            raise UserError(
                f"load_balance: detach_gates=False goes with assignment='gates', not {assignment!r}; drop it."
            )
        self.assignment = assignment
        self.scope = scope
        self.detach_gates = detach_gates

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the loss averaged over sites, or of the pooled tokens.

        Raises:
            UserError: If `scope` is global and sites differ in their number of experts.
        """
        if self.scope == "global" and len({group.num_experts for group in groups}) > 1:
            raise UserError(
                "a global load-balance loss needs the same number of experts at every site; "
                "use scope='per_site'."
            )
        means = [group.token_mean(group.probs) for group in groups]
        shares = [
            _assignment(group, self.assignment, pbar, self.detach_gates)
            for group, pbar in zip(groups, means, strict=True)
        ]
        sites = sum(len(group.sites) for group in groups)
        if self.scope == "global":
            pbar, share = torch.cat(means).mean(dim=0), torch.cat(shares).mean(dim=0)
            return groups[0].num_experts * (share * pbar).sum()
        losses = [
            group.num_experts * (share * pbar).sum()
            for group, pbar, share in zip(groups, means, shares, strict=True)
        ]
        return torch.stack(losses).sum() / sites
