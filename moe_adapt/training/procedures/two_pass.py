r"""Two passes that must agree: what makes experts chosen at random interchangeable (THOR).

Every pass routes anew, so with the scorer ``random`` each meets other experts. With the class (or token)
probabilities `p` and `q` of the two passes and their task losses

$$L = L_1 + L_2 + \alpha \cdot \tfrac12 \sum_c (p_c - q_c)(\log p_c - \log q_c)$$

where the last term, the mean of both Kullback-Leibler divergences, is averaged over samples (over labelled
tokens of a language model). Padding never enters. Auxiliary losses of both passes are added.

Both passes carry a gradient, as published. With a router that has no random part the passes are equal, the
last term is 0, and the step is an ordinary one with twice the loss.

Reference:
    Zuo et al., "Taming Sparsely Activated Transformer with Stochastic Experts", arXiv 2110.04260; code
    microsoft/Stochastic-Mixture-of-Experts.
"""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.training.procedures.base import PROCEDURES, Procedure, aux_loss

if TYPE_CHECKING:
    from moe_adapt.training.modules.base import AdaptedModule, Batch

__all__ = ["TwoPass", "symmetric_kl"]


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean over rows of the mean of both Kullback-Leibler divergences, a scalar.

    Args:
        first: Logits, [N, C].
        second: Logits, [N, C].

    >>> import torch
    >>> z = torch.tensor([[0.0, 2.0]])
    >>> float(symmetric_kl(z, z)), float(symmetric_kl(z, -z)) > 0
    (0.0, True)
    """
    log_p, log_q = F.log_softmax(first.float(), dim=-1), F.log_softmax(second.float(), dim=-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean()


@PROCEDURES.register("two_pass")
class TwoPass(Procedure):
    """Trains on two passes over each batch that must agree.

    Args:
        alpha: Weight of the disagreement. Higher: experts become more alike.

    Raises:
        UserError: If `alpha` is negative.
    """

    reference = "THOR, Zuo et al. 2022, arXiv 2110.04260"

    def __init__(self, alpha: float = 1.0) -> None:
        if alpha < 0:
            raise UserError(f"alpha weighs a disagreement and is not negative, got {alpha}.")
        self.alpha = alpha

    def step(self, module: "AdaptedModule", batch: "Batch") -> Tensor:
        """Return the loss of both passes."""
        first, one = module.scored(batch)
        first = first + aux_loss(module)
        second, two = module.scored(batch)
        second = second + aux_loss(module)
        apart = symmetric_kl(one, two)
        module.log("train/disagreement", apart.detach(), batch_size=len(one))
        return first + second + self.alpha * apart
