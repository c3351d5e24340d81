r"""A trained sample router: a softmax over experts of standardised features, fitted to the examples.

$$\min_{W, b}\; -\tfrac1n \sum_i \log \mathrm{softmax}(W z_i + b)_{e(i)} + \tfrac{\lambda}{2} |W|^2$$

by L-BFGS, which is deterministic. The examples' features are kept, since a new expert changes all rows:
adding one fits again. The baseline that `lda` is compared with.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.routing.sample.base import SAMPLE_ROUTERS, SampleRouter, entries
from moe_adapt.routing.sample.rule import RuleShape, SampleRule

__all__ = ["TrainedRouter"]


@SAMPLE_ROUTERS.register("trained")
class TrainedRouter(SampleRouter):
    """Multinomial logistic regression.

    Args:
        penalty: Weight of the squared norm, `lambda`.

    Raises:
        UserError: If `penalty` is negative.
    """

    def __init__(self, penalty: float = 1e-3) -> None:
        if penalty < 0:
            raise UserError(f"the penalty must not be negative, got {penalty}.")
        self.penalty = penalty
        self.examples: dict[str, Tensor] = {}

    @property
    def uids(self) -> list[str]:
        """Names of the experts, sorted."""
        return sorted(self.examples)

    @property
    def counts(self) -> dict[str, int]:
        """How many examples each expert has."""
        return {uid: len(self.examples[uid]) for uid in self.uids}

    def observe(self, features: Tensor, uid: str, labels: Sequence[str | None] | None = None) -> None:
        """Keep features of examples (see `SampleRouter.observe`)."""
        if features.ndim != 2 or not len(features):
            raise UserError(f"the expert {uid!r} needs examples of what it is for; give at least one text.")
        new = features.detach().cpu().float()
        self.examples[uid] = torch.cat([self.examples[uid], new]) if uid in self.examples else new

    def remove(self, uid: str) -> None:
        """Forget an expert (see `SampleRouter.remove`)."""
        self.check_known(uid)
        del self.examples[uid]

    def rule(self) -> SampleRule:
        """Fit the softmax (see `SampleRouter.rule`)."""
        self.check_some()
        x = torch.cat([self.examples[uid] for uid in self.uids]).double()
        y = torch.cat([torch.full((len(self.examples[uid]),), place) for place, uid in enumerate(self.uids)])
        center, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)
        z = (x - center) / spread
        weight = torch.zeros(len(self.uids), x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(self.uids), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(z @ weight.t() + bias, y) + self.penalty / 2 * weight.square().sum()
            value.backward()
            return value

        with torch.inference_mode(False), torch.enable_grad():
            optimizer.step(loss)
        rule = SampleRule(RuleShape(x.shape[1], len(self.uids), len(self.uids)))
        rule.weight.copy_(weight.detach() / spread)
        rule.bias.copy_(bias.detach())
        rule.center.copy_(center)
        return rule

    def state(self) -> dict[str, Tensor]:
        """Return the features of every expert's examples."""
        return {f"{uid}/features": self.examples[uid] for uid in self.uids}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over examples (see `SampleRouter.load`)."""
        self.examples = {uid: parts["features"] for uid, parts in entries(state).items()}
