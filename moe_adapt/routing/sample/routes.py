"""Decisions about samples: which experts each uses, and how much."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["SampleRoutes", "decide"]


@dataclass
class SampleRoutes:
    """The decision about the samples of a batch.

    Attributes:
        index: Experts of each sample, int [B, K].
        gates: Their weights, [B, K]; all zero where the base answers alone.
        posterior: Probability of every expert, [B, E]; NaN for samples whose expert was given.
        novelty: How far each sample is from what the experts know, [B]; NaN where the expert was given.
        uids: Names of the experts, if they are known.
        held: Whether the decision outlives a forward, as it does while text is generated.
        factors: The experts' factors that layers gathered for a held decision, by layer.
        scores: Score of every expert, [B, E]; None where no router was asked.
        places: Where layers store the experts of samples, by the layers' own experts and their order.
    """

    index: Tensor
    gates: Tensor
    posterior: Tensor
    novelty: Tensor
    uids: tuple[str, ...] = ()
    held: bool = False
    factors: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    scores: Tensor | None = None
    places: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def experts(self) -> int:
        """How many experts there are, `E`."""
        return self.posterior.shape[1]

    @property
    def abstained(self) -> Tensor:
        """Which samples no expert answers, bool [B]."""
        return (self.gates == 0).all(dim=1)

    @property
    def margin(self) -> Tensor:
        """Difference of the two largest probabilities, [B]; 1 with one expert."""
        if self.experts == 1:
            return torch.ones_like(self.novelty)
        best = self.posterior.topk(2, dim=1).values
        return best[:, 0] - best[:, 1]

    def dense(self) -> Tensor:
        """Return the weight of every expert, [B, E]."""
        gates = torch.zeros_like(self.posterior)
        return gates.scatter_add(1, self.index, self.gates.to(gates.dtype))

    def added(self) -> Tensor:
        """Return what is added to the logits of tokens, [B, E]: the scores, 0 where no router was asked."""
        return torch.zeros_like(self.posterior) if self.scores is None else self.scores

    def names(self) -> list[str | None]:
        """Return the main expert of each sample by name; None where the base answers alone."""
        uids = self.uids or [str(expert) for expert in range(self.experts)]
        place = self.gates.argmax(dim=1, keepdim=True)
        chosen = self.index.gather(1, place).squeeze(1).tolist()
        idle = self.abstained.tolist()
        return [None if none else uids[i] for i, none in zip(chosen, idle, strict=True)]

    def repeated(self, rows: int) -> "SampleRoutes":
        """Return the decisions for a batch in which every sample stands several times, next to itself.

        Args:
            rows: Rows of that batch, a multiple of the samples.

        Raises:
            UserError: If it is none.
        """
        if rows == len(self):
            return self
        if rows < len(self) or rows % len(self):
            raise UserError(
                f"{len(self)} samples were routed, and now the model sees {rows} rows; route a batch anew "
                "instead of going on with the cache of another."
            )
        times = rows // len(self)
        return SampleRoutes(
            self.index.repeat_interleave(times, dim=0),
            self.gates.repeat_interleave(times, dim=0),
            self.posterior.repeat_interleave(times, dim=0),
            self.novelty.repeat_interleave(times, dim=0),
            uids=self.uids,
            held=self.held,
            scores=None if self.scores is None else self.scores.repeat_interleave(times, dim=0),
        )


def decide(
    scores: Tensor,
    novelty: Tensor,
    k: int = 1,
    temperature: float = 1.0,
    threshold: float | None = None,
    known: Tensor | None = None,
    uids: Sequence[str] = (),
) -> SampleRoutes:
    """Decide about samples from scores.

    Args:
        scores: Score of every expert, [B, E].
        novelty: How far each sample is from what is known, [B].
        k: Experts per sample; 0 takes all of them, weighted by their probabilities.
        temperature: Divides the scores.
        threshold: Samples of more novelty are left to the base; None never does.
        known: Expert of each sample where it is given, int [B], -1 for none; it wins.
        uids: Names of the experts.

    >>> routes = decide(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([0.1, 9.0]), threshold=5.0)
    >>> routes.index.tolist(), routes.gates.tolist()
    ([[1], [0]], [[1.0], [0.0]])
    """
    posterior = (scores / temperature).softmax(dim=1)
    experts = scores.shape[1]
    kept = experts if k == 0 else min(k, experts)
    gates, index = posterior.topk(kept, dim=1)
    gates = gates / gates.sum(dim=1, keepdim=True) if k else gates
    if k == 1:
        gates = torch.ones_like(gates)
    if threshold is not None:
        gates = gates.masked_fill((novelty > threshold)[:, None], 0.0)
    if known is not None:
        told = known >= 0
        first = torch.zeros_like(gates)
        first[:, 0] = 1.0
        gates = torch.where(told[:, None], first, gates)
        index = torch.where(told[:, None], known.clamp(min=0)[:, None], index)
        posterior = posterior.masked_fill(told[:, None], torch.nan)
        novelty = novelty.masked_fill(told, torch.nan)
    return SampleRoutes(index, gates, posterior, novelty, tuple(uids), scores=scores)
