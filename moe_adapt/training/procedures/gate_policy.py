r"""Routers taught by reward: rollouts with sampled experts, compared within their group (MoE-GRPO).

Each row is answered `rollouts` times with experts drawn anew (selector ``sampled``), and the answer is drawn
too. A right answer earns 1, a wrong one 0. With the advantage $A_i = (r_i - \bar r) / (\sigma_r + 10^{-4})$
within the row's group, and probabilities of before the update as `old`,

$$L = -\operatorname{mean} \min(\rho A, \operatorname{clip}(\rho, 1 - c, 1 + c) A)$$

once for $\rho = p(y) / p_{old}(y)$, the answer, and once for $\rho = g(e) / g_{old}(e)$, the router's
probability of each expert drawn, averaged over tokens, layers and experts. The same draws run again for every
update, so the ratio is 1 at the first. There is no divergence from a reference, as published. Groups whose
answers are all right or all wrong teach nothing.

Departures: answers are classes (the choices of a question), not generated text, and modalities do not lose
their least used experts before sampling. Described from notes on the paper; no official code was read.

Reference:
    MoE-GRPO, which optimises expert selection with the rule of Shao et al., "DeepSeekMath", arXiv 2402.03300.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.routing import AuxLoss, RecordGroup
from moe_adapt.training.procedures.base import PROCEDURES, Procedure, aux_loss, update
from moe_adapt.tuner.layer import adapted_layers

if TYPE_CHECKING:
    from moe_adapt.training.modules.base import AdaptedModule, Batch

__all__ = ["GatePolicy", "GateRatio", "advantages", "clipped"]


def advantages(rewards: Tensor) -> Tensor:
    """Return rewards relative to their group, [B, G]; zero where all of a group are equal.

    Args:
        rewards: Rewards of the rollouts of each row, [B, G].

    >>> advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).sum(dim=1).abs().max().item() < 1e-6
    True
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the surrogate that is to be raised, of the shape of both together.

    Args:
        log_ratio: Logarithm of the probability now over that of before.
        advantage: What the choice was worth.
        clip: How far the ratio counts.
    """
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


class GateRatio(AuxLoss):
    """The surrogate of the routers' probabilities of experts that were drawn.

    Args:
        old: Decisions of the rollouts.
        advantage: What each rollout was worth, [samples].
        clip: How far the ratio counts.
        weight: Coefficient.
    """

    def __init__(self, old: Sequence[RecordGroup], advantage: Tensor, clip: float, weight: float) -> None:
        super().__init__(weight)
        self.old = [(F.log_softmax(group.logits.detach(), dim=-1), group.selected) for group in old]
        self.advantage, self.clip = advantage, clip

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean over experts drawn, unpadded tokens and sites, to be lowered."""
        total, sites = groups[0].logits.new_zeros(()), 0
        for (old, selected), group in zip(self.old, groups, strict=True):
            tokens = old.shape[1] // len(self.advantage)
            worth = self.advantage.repeat_interleave(tokens)[None, :, None].to(old.dtype)
            gain = clipped(F.log_softmax(group.logits, dim=-1) - old, worth, self.clip)
            kept = selected.to(gain.dtype)
            each = (gain * kept).sum(dim=-1) / kept.sum(dim=-1).clamp(min=1)
            total = total - group.token_mean(each).sum()
            sites += len(old)
        return total / sites


@PROCEDURES.register("gate_policy")
class GatePolicy(Procedure):
    """Teaches routers and answers by reward.

    Args:
        rollouts: Answers per row, `G`. Higher: finer advantages, slower steps.
        updates: Optimizer steps on the same rollouts.
        clip: How far a ratio counts. Higher: larger steps away from what was drawn.
        answer_weight: Weight of the answer's ratio; 0 trains through the gates alone.
        gate_weight: Weight of the gates' ratio.

    Raises:
        UserError: If a number is out of range.
    """

    reference = "the rule of GRPO, Shao et al. 2024, arXiv 2402.03300, on gates"

    def __init__(
        self,
        rollouts: int = 8,
        updates: int = 2,
        clip: float = 0.2,
        answer_weight: float = 1.0,
        gate_weight: float = 1.0,
    ) -> None:
        if rollouts < 2 or updates < 1 or not 0 < clip < 1 or min(answer_weight, gate_weight) < 0:
            raise UserError(
                "gate_policy needs at least 2 rollouts and 1 update, a clip in (0, 1), weights that are not "
                "negative."
            )
        self.rollouts, self.updates, self.clip = rollouts, updates, clip
        self.answer_weight, self.gate_weight = answer_weight, gate_weight
        self.steps_per_batch = updates

    def check(self, module: "AdaptedModule") -> None:
        """Raise `UserError` unless the module answers with a class, by experts that are drawn."""
        names = {
            router.skeleton.selector.registered_name
            for layer in ([] if module.tuner is None else adapted_layers(module.model))
            for router in layer.routers.values()
        }
        if not hasattr(module, "num_classes") or "sampled" not in names:
            raise UserError(
                "gate_policy rewards classifiers whose experts are drawn; set the selector to "
                "{name: sampled, k: 2} (the method gate_policy), and train a classifier."
            )

    def rollout(self, module: "AdaptedModule", batch: "Batch") -> tuple["Batch", Tensor, Tensor, Tensor]:
        """Answer each row several times; return rows [B G], answers, their log-probabilities and rewards."""
        rows = {name: values.repeat_interleave(self.rollouts, dim=0) for name, values in batch.items()}
        with torch.no_grad():
            log_p = F.log_softmax(module.scored(rows)[1], dim=-1)
            answer = torch.multinomial(log_p.exp().float(), 1).squeeze(1)
            old = log_p.gather(1, answer[:, None]).squeeze(1)
        return rows, answer, old, (answer == rows["labels"]).to(log_p.dtype)

    def step(self, module: "AdaptedModule", batch: "Batch") -> None:
        """Roll out, then step on what the rollouts were worth."""
        assert module.tuner is not None
        session = module.tuner.hooks.session
        rows, answer, old, reward = self.rollout(module, batch)
        assert session.context is not None
        drawn = {key: record.selected for key, record in session.context.records.items()}
        before = module.tuner.recorded()
        worth = advantages(reward.view(-1, self.rollouts)).flatten()
        module.log("train/reward", reward.mean(), batch_size=len(batch["labels"]), prog_bar=True)
        gates = {"gates": GateRatio(before, worth, self.clip, self.gate_weight)}
        for _ in range(self.updates):
            with session.replaying(drawn):
                log_p = F.log_softmax(module.scored(rows)[1], dim=-1)
            now = log_p.gather(1, answer[:, None]).squeeze(1)
            gain = clipped(now - old, worth, self.clip).mean()
            update(module, aux_loss(module, gates) - self.answer_weight * gain)
