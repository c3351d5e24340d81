r"""DyMoE: experts that grow task by task, and tokens assigned to them by how new they look.

Every task appends experts and router rows to each layer and freezes the older ones, so all forgetting is
routing leak: old tokens that are drawn to newer experts. While a task trains, `token_assignment` keeps
old-looking tokens away from the new experts and `routing_separation` pulls the groups apart; at test time
all experts compete, without guidance and without a task id. What is masked and what is lost is in those two
modules; this learner grows the pool, logs how many tokens the new experts are admitted, and starts new rows.

The published rule starves: with many old experts, or a common direction in the tokens, next to no token
looks new. A warning says so, and there are remedies: `row_init="tokens"` takes new rows from the task's
tokens (spread out by farthest-point sampling), `center` compares tokens less their mean on the first task,
and the guidance has `tau_warmup` and `group_score`. Which of them are on is said by the configuration:
``dymoe`` has none.

The paper's `L_aux`, which its code lacks, is the loss `new_expert_balance` of the adapter; it is off in every
preset.

With ``inc_moelora``'s adapter, which has no guidance, this is the paper's own baseline.

Reference:
    Zhao, Li, Lu, Gong, "On Token's Dilemma: Dynamic MoE with Drift-Aware Token Assignment", arXiv
    2603.27481. Where its code builds the new bank only in training mode, ours is live from the start of a
    task in both modes.
"""

import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS
from moe_adapt.learners.instructions.growing import ADAPTER, GrowingPool, run_samples
from moe_adapt.learners.instructions.observing import LayerInput
from moe_adapt.routing.token_types import group_scores, token_types
from moe_adapt.streams import Batch, Task
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["DyMoE", "farthest_points"]

#: Least share of tokens that new experts should get, and over how many steps it is taken.
STARVING, STARVING_STEPS = 0.01, 50
KINDS = ("new", "old", "ambiguous")


def farthest_points(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows that are far apart in angle, [count, d], the first at random.

    Args:
        rows: Rows to choose from, [N, d].
        count: How many; chosen again from the start if there are fewer rows.
        generator: Draws the first.
    """
    units = F.normalize(rows, dim=-1)
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = units @ units[chosen[0]]
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, units @ units[chosen[-1]])
    return rows[[chosen[i % len(chosen)] for i in range(count)]]


def _check_balance(tuner: RoutedLoraConfig) -> None:
    """Refuse the balance loss where every token takes all new experts, so that it is constant."""
    losses = [loss if isinstance(loss, str) else loss["name"] for loss in tuner.aux_losses or []]
    selector = tuner.selector if isinstance(tuner.selector, dict) else {}
    k, experts = selector.get("k"), tuner.num_experts
    if "new_expert_balance" in losses and isinstance(experts, int) and k is not None and k >= experts:
        raise UserError(
            f"new_expert_balance balances nothing: with k={k} every admitted token takes all {experts} new "
            "experts; give the selector a smaller k or drop the loss."
        )


@LEARNERS.register("dymoe")
class DyMoE(GrowingPool):
    """A growing pool with cosine routers and token assignment guidance.

    Args:
        backbone: The model.
        tuner: The adapter of one task: cosine scorer, with or without `token_assignment` and
            `routing_separation`.
        row_init: How rows of new experts start: kaiming (published) or tokens of the task.
        center: Whether tokens are compared less their mean on the first task; the scorer needs center: true.
        init_samples: Training samples that rows and mean are taken from.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the adapter's scorer is no cosine or cannot be centred, or its balance loss is constant.
    """

    reference = "DyMoE, Zhao et al. 2026, arXiv 2603.27481"

    def __init__(
        self,
        backbone: InstructionModel,
        tuner: RoutedLoraConfig,
        row_init: Literal["kaiming", "tokens"] = "kaiming",
        center: bool = False,
        init_samples: int = 64,
        **settings: Any,
    ) -> None:
        given = tuner.scorer or "linear"
        scorer: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
        if scorer["name"] != "cosine":
            raise UserError(
                "DyMoE sorts tokens by the relative gap of scores, which makes sense for cosines only; the "
                f"scorer is {scorer['name']!r}: take the method 'dymoe' or 'inc_moelora'."
            )
        if center and not scorer.get("center"):
            raise UserError("to centre tokens, give the cosine scorer center: true.")
        if row_init not in ("kaiming", "tokens"):
            raise UserError(f"row_init is 'kaiming' or 'tokens', got {row_init!r}.")
        if row_init == "tokens" and settings.get("start") == "most_useful":
            raise UserError("new rows start as copies (start: most_useful) or from tokens; choose one.")
        _check_balance(tuner)
        super().__init__(backbone, tuner, **settings)
        self.row_init, self.center, self.init_samples = row_init, center, init_samples
        options = [{} if isinstance(m, str) else m for m in tuner.modifiers or []]
        self.tau = next((float(m["tau"]) for m in options if "tau" in m), 0.2)
        self._counts: dict[str, Tensor] = {}
        self._recent: list[float] = []
        self._warned = False

    def begin_task(self, task: Task) -> None:
        """Grow, and start new rows from the task's tokens if asked to."""
        super().begin_task(task)
        self._counts, self._recent, self._warned = {}, [], False
        centring = self.center and task.index == 0
        if self.row_init == "tokens" or centring:
            self._start_from_tokens(task, centring)

    @torch.no_grad()
    def _start_from_tokens(self, task: Task, centring: bool) -> None:
        seen: dict[str, list[Tensor]] = {}

        def watch(layer_input: LayerInput) -> None:
            seen.setdefault(layer_input.layer.site, []).append(layer_input.rows.float())

        run_samples(self, task, self.init_samples, watch)
        generator = torch.Generator().manual_seed(task.index)
        for layer in self.layers():
            tokens = torch.cat(seen[layer.site])
            tensors = layer.routers[ADAPTER].tensors(layer)
            if centring:
                tensors["scorer.center"].copy_(tokens.mean(0))
            if self.row_init == "tokens":
                newest = self.new_experts(layer)
                own = tokens - tensors["scorer.center"] if "scorer.center" in tensors else tokens
                rows = F.normalize(farthest_points(own, int(newest.sum()), generator), dim=-1)
                weight = tensors["scorer.weight"]
                weight.data[newest] = rows.to(weight) * weight.data[newest].norm(dim=-1, keepdim=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the right answers, and count what the guidance did with the tokens."""
        found = super().losses(batch)
        if len(self.history) > 1 and self.training:
            self._count()
        return found

    @torch.no_grad()
    def _count(self) -> None:
        context = self.peft_tuner.hooks.session.context
        admitted, tokens = 0, 0
        for record in context.records.values() if context is not None else ():
            if record.scores is None or record.expert_groups is None:
                continue
            scores = record.scores if record.mask is None else record.scores[record.mask]
            groups = group_scores(scores, record.expert_groups)
            if groups is None:
                continue
            counts = torch.stack([kind.sum() for kind in token_types(*groups, self.tau)])
            self._counts[record.site] = self._counts.get(record.site, 0) + counts.cpu()
            admitted, tokens = admitted + int(counts[0]), tokens + len(scores)
        if tokens:
            self._recent = [*self._recent[-STARVING_STEPS + 1 :], admitted / tokens]
            self._warn_if_starving()

    def _warn_if_starving(self) -> None:
        if self._warned or len(self._recent) < STARVING_STEPS or np.mean(self._recent) >= STARVING:
            return
        self._warned = True
        share = 100 * float(np.mean(self._recent))
        warnings.warn(
            f"the new experts of task {self.history[-1].index} are starving: over {STARVING_STEPS} steps "
            f"they got {share:.2f} % of the tokens. Options: tau_warmup or group_score='task_mean_max' of "
            "the modifier token_assignment, row_init='tokens', center=True.",
            stacklevel=2,
        )

    def admission(self) -> dict[str, dict[str, float]]:
        """Return the shares of new, old and ambiguous tokens in the task so far, by site."""
        return {
            site: dict(zip(KINDS, (counts / counts.sum().clamp(min=1)).tolist(), strict=True))
            for site, counts in self._counts.items()
        }

    def report(self) -> dict[str, Any]:
        """Return sizes and admission, site by site and on average."""
        found, sites = super().report(), self.admission()
        if sites:
            mean = {kind: sum(row[kind] for row in sites.values()) / len(sites) for kind in KINDS}
            found |= {"admission": mean, "admission_by_site": sites}
        return found
