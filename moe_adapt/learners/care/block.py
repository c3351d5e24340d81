r"""One block's mixture: entropies choose routers, routers choose experts, a shared expert is always on.

$$u_t = E_t(\mathrm{row}), \quad H_t = \mathrm{entropy}(C_t(u_t)), \quad
S = \text{M routers of smallest } H, \quad g_m = R_m(u_m)$$

$$y = \sum_{m \in S} \sum_{e \in \mathrm{topK}(g_m)} a_{m,e}\, E_e(z) + \bar E(z)$$

`row` is one vector per sample (the CLS token), so the decision is per sample. Since experts act token by
token, routing needs only the routing row of every expert. So the rows of all experts are computed first,
without gradient; then the rows of the chosen routers' experts, with gradient; then all tokens for at most
`M K` experts. The result and its gradients are those of the dense form, which runs every expert on every
token (`moe_adapt.learners.care.reference`).

While task t is being learned its router is always chosen, beside the M - 1 of smallest entropy among the
older. The gates sum to the number of chosen routers, not to one (`average_routers` divides).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.hub.arguments import SETTINGS
from moe_adapt.learners.care.bottleneck import BottleneckBank, Folded, active_experts
from moe_adapt.learners.care.perceptrons import Perceptrons
from moe_adapt.learners.care.routers import KeyRouters, TriangularRouters, top_k_gates

__all__ = ["CareBlock", "CareOptions", "Decision", "Scope", "choose_routers"]


@SETTINGS.register("CareOptions")
@dataclass(frozen=True)
class CareOptions:
    """What shapes the mixture.

    Attributes:
        rank: Hidden units of an expert.
        shared_rank: Hidden units of the shared expert.
        num_routers: Routers chosen per sample, `M`.
        top_k: Experts that a router keeps, `K`.
        layer_norm: Whether experts have a layer norm of their own (the released code; the paper's parameter
            count is without).
        dropout: Dropout on the hidden units of experts.
        shared_dropout: Dropout on the hidden units of the shared expert (0.1 in the released code).
        router: ``triangular`` as published, quadratic in the number of tasks; ``keys`` for the linear
            variant.
        key_rank: Numbers in a key of the linear variant.
        shared: What becomes of the shared expert after the first task: ``frozen``; ``ema``, a slow average of
            a copy that is trained on; ``none`` for no shared expert.
        ema_decay: How much of the slow shared expert is kept per step.
        expert_init: Where a new expert starts: ``mean_previous``, the mean of all previous; ``mean_but_last``
            leaves out the latest, as the released code does; ``fresh`` outputs zero.
        average_routers: Whether to divide the mixture by the number of chosen routers.
        normalize_entropy: Whether to divide a task's entropy by the logarithm of its number of classes.
        force_current_expert: Whether the new expert is always kept while its task is learned (ours).
        perceptron_gain: Standard deviation of the gain of the perceptrons' layer norm at the start; None
            for a gain of 1.
    """

    rank: int = 16
    shared_rank: int = 64
    num_routers: int = 2
    top_k: int = 3
    layer_norm: bool = True
    dropout: float = 0.1
    shared_dropout: float = 0.0
    router: Literal["triangular", "keys"] = "triangular"
    key_rank: int = 16
    shared: Literal["frozen", "ema", "none"] = "frozen"
    ema_decay: float = 0.999
    expert_init: Literal["mean_previous", "mean_but_last", "fresh"] = "mean_previous"
    average_routers: bool = False
    normalize_entropy: bool = False
    force_current_expert: bool = False
    perceptron_gain: float | None = 0.02

    def __post_init__(self) -> None:
        for name in ("rank", "shared_rank", "num_routers", "top_k", "key_rank"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        dropouts = (self.dropout, self.shared_dropout)
        if not all(0.0 <= rate < 1.0 for rate in dropouts) or not 0.0 <= self.ema_decay <= 1.0:
            raise UserError("dropout and shared_dropout lie in [0, 1) and ema_decay in [0, 1].")
        for name, known in (
            ("router", ("triangular", "keys")),
            ("shared", ("frozen", "ema", "none")),
            ("expert_init", ("mean_previous", "mean_but_last", "fresh")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}.")


class Scope(NamedTuple):
    """Which triplets take part.

    Attributes:
        tasks: How many, from the first.
        forced: Whether the last of them is always chosen.
    """

    tasks: int
    forced: bool


class Decision(NamedTuple):
    """What a block decided for a batch.

    Attributes:
        chosen: Chosen routers, [B, M].
        entropies: Entropy of every perceptron, [B, T].
        gates: Weight of every expert, [B, T].
        row: Output of the last expert in scope for the routing row, [B, d]; None unless it was forced.
    """

    chosen: Tensor
    entropies: Tensor
    gates: Tensor
    row: Tensor | None


def choose_routers(entropies: Tensor, count: int, forced: bool) -> Tensor:
    """Return the indices of the chosen routers, [B, min(count, T)].

    Args:
        entropies: Entropies of the perceptrons, [B, T].
        count: How many routers to choose.
        forced: Whether the last one is always among them.

    >>> choose_routers(torch.tensor([[0.1, 0.3, 0.9]]), count=2, forced=True)
    tensor([[2, 0]])
    """
    if forced:
        entropies = torch.cat([entropies[:, :-1], torch.full_like(entropies[:, -1:], float("-inf"))], dim=1)
    return entropies.topk(min(count, entropies.shape[1]), dim=1, largest=False).indices


class CareBlock(nn.Module):
    """Experts, routers and perceptrons of one transformer block.

    Args:
        width: Features per token, `d`.
        options: What shapes the mixture.

    Attributes:
        decision: What was decided in the latest forward.
    """

    def __init__(self, width: int, options: CareOptions) -> None:
        super().__init__()
        self.options = options
        self.experts = BottleneckBank(width, options.rank, options.layer_norm)
        self.perceptrons = Perceptrons(width, options.perceptron_gain)
        self.routers = (
            KeyRouters(width, options.key_rank) if options.router == "keys" else TriangularRouters(width)
        )
        wanted = {"none": 0, "frozen": 1, "ema": 2}[options.shared]
        banks = [BottleneckBank(width, options.shared_rank, options.layer_norm) for _ in range(wanted)]
        self.shared = banks[0] if banks else None
        self.fast = banks[1] if len(banks) > 1 else None
        self.decision: Decision | None = None

    def grow(self, classes: int) -> None:
        """Add a trainable triplet for a task of so many classes; what was trainable is frozen first."""
        self.freeze()
        known = self.experts.num_experts
        used = known - 1 if self.options.expert_init == "mean_but_last" else known
        fresh = self.options.expert_init == "fresh" or used < 1
        self.experts.append(self.experts.fresh() if fresh else self.experts.mean(used))
        self.perceptrons.grow(classes)
        self.routers.grow()
        if self.shared is None:
            return
        if known == 0:
            self.shared.append(self.shared.fresh())
        elif self.fast is not None:
            self.fast.append(self.shared.mean(1))

    def freeze(self) -> None:
        """Freeze everything that is trainable."""
        for part in (self.experts, self.perceptrons, self.routers, self.shared):
            if part is not None:
                part.freeze()
        if self.fast is not None:
            self.fast.discard()

    def forget(self) -> None:
        """Drop the latest decision, which holds on to the graph of its forward."""
        self.decision = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the slow shared expert towards the one that is trained, after an optimizer step."""
        if self.fast is None or self.shared is None or self.fast.num_experts == 0:
            return
        for name in self.shared.tensors:
            slow, fast = self.shared.frozen(name), getattr(self.fast, f"new_{name}")
            slow.lerp_(fast, 1 - self.options.ema_decay)
        self.shared.changed()

    def forward(self, tokens: Tensor, row: Tensor, scope: Scope, row_token: int | None = None) -> Tensor:
        """Return what the mixture adds to the residual stream, [B, S, d].

        Args:
            tokens: The residual stream, [B, S, d].
            row: The routing row of each sample, [B, d].
            scope: Which triplets take part.
            row_token: Position of the token that is the routing row, if it is a token; dropout then hits both
                alike.
        """
        keep = self._keep(len(row), scope.tasks)
        folded = self.experts.folded().first(scope.tasks)
        self.decision = self.decide(self.experts.normalized(row), folded, scope, keep)
        gates = self.decision.gates
        active = min(scope.tasks, self.decision.chosen.shape[1] * self.options.top_k)
        if keep is not None:
            keep = self._keep_tokens(keep, gates, active, tokens.shape[1], row_token)
        result = folded.mix(self.experts.normalized(tokens), gates.to(tokens.dtype), active, keep)
        shared = self.shared
        if self.training and self.fast is not None and self.fast.num_experts:
            shared = self.fast
        if shared is not None:
            always = tokens.new_ones(len(tokens), 1)
            kept = None
            if self.training and self.options.shared_dropout > 0:
                ones = tokens.new_ones(*tokens.shape[:2], 1, self.options.shared_rank)
                kept = torch.nn.functional.dropout(ones, self.options.shared_dropout)
            result = result + shared.folded().mix(shared.normalized(tokens), always, 1, kept)
        return result

    def decide(self, row: Tensor, folded: Folded, scope: Scope, keep: Tensor | None = None) -> Decision:
        """Return which experts run for each sample, and how much they weigh.

        Args:
            row: Normalised routing rows, [B, d].
            folded: The experts in scope.
            scope: Which triplets take part.
            keep: Dropout masks of the hidden units of all experts, [B, T, r].
        """
        options = self.options
        with torch.no_grad():
            entropies = self.perceptrons.entropies(folded.rows(row, keep), options.normalize_entropy)
            chosen = choose_routers(entropies, options.num_routers, scope.forced)
        rows = folded.rows_of(row, chosen, keep)
        logits = self.routers(rows, chosen, scope.tasks)
        gates = top_k_gates(logits, options.top_k, options.force_current_expert and scope.forced)
        if options.average_routers:
            gates = gates / chosen.shape[1]
        return Decision(chosen, entropies, gates, rows[:, 0] if scope.forced else None)

    def _keep(self, batch: int, tasks: int) -> Tensor | None:
        if not self.training or self.options.dropout == 0.0:
            return None
        rate = self.options.dropout
        ones = torch.ones(batch, tasks, self.options.rank, device=self.experts.frozen("down").device)
        return torch.nn.functional.dropout(ones, rate)

    def _keep_tokens(self, keep: Tensor, gates: Tensor, active: int, tokens: int, row: int | None) -> Tensor:
        index = active_experts(gates, active).unsqueeze(-1).expand(-1, -1, keep.shape[-1])
        picked = keep.gather(1, index)
        drawn = torch.nn.functional.dropout(
            picked.new_ones(len(picked), tokens, *picked.shape[1:]), self.options.dropout
        )
        if row is not None:
            drawn[:, row] = picked
        return drawn
