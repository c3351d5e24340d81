r"""Slices of one LoRA as experts (Union of Experts): `E` slices of rank `r / E`, switched on per token.

A large LoRA is the union of its rows: with all slices on,

$$y = W x + s \sum_{e} g_e\, B_e A_e x, \qquad g = 1 \;\Rightarrow\; y = W x + s\,B A x$$

for `A = [A_1; \ldots; A_E]` of rank `r`, which a router does not change but prunes for each token. So `r` and
`alpha` mean the whole LoRA, and the scale is that of the whole. Slices are stored as ordinary experts: every
kernel, edit, export and merge takes them as they are. They go with the selector `on_off`, whose gates are 1.

Departures: the paper slices the layers of a transformer and chooses by a linear layer on the flattened
sequence, which has one length only; here a token chooses the slices of an adapter.

Reference: Yang et al., "Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed
Transformer", 2025, arXiv 2503.02495.
"""

from moe_adapt.errors import UserError
from moe_adapt.experts.kinds import BANKS, BankKind, StoredSize

__all__ = ["SlicesKind"]


@BANKS.register("slices")
class SlicesKind(BankKind):
    """The experts are slices of one LoRA; rank and scale are those of the whole."""

    reference = "Union of Experts, Yang et al. 2025, arXiv 2503.02495"

    def stored(self, num_experts: int, rank: int, alpha: float, use_rslora: bool) -> StoredSize:
        """Return rank and numerator of a slice, such that its scale is that of the whole.

        Raises:
            UserError: If the rank is no multiple of the number of slices.
        """
        if rank % num_experts:
            raise UserError(
                f"{num_experts} slices of one LoRA need a rank that they divide, got r={rank}; take "
                f"r={-(-rank // num_experts) * num_experts}, or another num_experts."
            )
        share = num_experts**0.5 if use_rslora else num_experts
        return StoredSize(rank // num_experts, alpha / share)
