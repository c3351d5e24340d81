"""The router of a site: scorer, modifiers and selector in a row."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.experts import ExpertBank
from moe_adapt.registry import Spec
from moe_adapt.routing.base import (
    MODIFIERS,
    SCORERS,
    SELECTORS,
    LogitModifier,
    Logits,
    RoutingDecision,
    Scorer,
    Selector,
)
from moe_adapt.routing.carrier import inject
from moe_adapt.routing.context import RouteContext, in_backward
from moe_adapt.routing.records import RoutingRecord, kept

__all__ = ["Router", "pool_columns"]


def pool_columns(logits: Logits, owners: Sequence[int]) -> Logits:
    """Return one logit per expert, the log-sum-exp of its columns: under a softmax it gets their joint share.

    Args:
        logits: Logits with one column per row of the router, then any null experts.
        owners: Expert of each of the router's rows.

    >>> z = torch.tensor([[0.0, 1.0, 0.0, 5.0]])
    >>> pool_columns(Logits(z, z), [0, 1, 0]).weight
    tensor([[0.6931, 1.0000, 5.0000]])
    """
    columns: list[list[int]] = [[] for _ in range(max(owners) + 1)]
    for column, owner in enumerate(owners):
        columns[owner].append(column)
    columns += [[column] for column in range(len(owners), logits.select.shape[-1])]

    def pooled(z: Tensor) -> Tensor:
        parts = [z[:, own[0]] if len(own) == 1 else z[:, own].logsumexp(-1) for own in columns]
        return torch.stack(parts, dim=-1)

    select = pooled(logits.select)
    weight = select if logits.weight is logits.select else pooled(logits.weight)
    forced = logits.forced
    if forced is not None:
        forced = torch.stack([forced[own].any() for own in columns])
    return Logits(select, weight, forced)


class Router(nn.Module):
    """Chains a scorer, any number of logit modifiers and a selector.

    Args:
        scorer: Gives logits.
        modifiers: Change them, in order.
        selector: Turns them into gates.
        anchored: Whether to keep the scorer's rows of the first training forward (`RoutingAnchorLoss`).
        owners: Expert of each column of scorer and modifiers, if an expert has several: its logit is their
            log-sum-exp.
    """

    def __init__(
        self,
        scorer: Scorer,
        modifiers: Sequence[LogitModifier],
        selector: Selector,
        anchored: bool = False,
        owners: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.owners = owners
        self.pool: str | None = None
        if anchored and scorer.rows is not None:
            self.register_buffer("anchor", torch.full_like(getattr(scorer, scorer.rows), torch.nan))
        self.scorer = scorer
        self.modifiers = nn.ModuleList(modifiers)
        self.selector = selector

    @classmethod
    def build(
        cls,
        scorer: Spec,
        modifiers: Sequence[Spec],
        selector: Spec,
        in_features: int,
        num_experts: int,
        anchored: bool = False,
        owners: Sequence[int] | None = None,
    ) -> "Router":
        """Build a router for a site of `in_features` inputs and `num_experts` experts from short names.

        Raises:
            UserError: For unknown names or options, or if the selector keeps more experts than there are.
        """
        shape = {"in_features": in_features, "num_experts": num_experts}
        built_selector = SELECTORS.build(selector, **shape)
        built_selector.check(num_experts)
        shape["num_experts"] = len(owners or range(num_experts)) + built_selector.nulls
        return cls(
            scorer=SCORERS.build(scorer, **shape),
            modifiers=[MODIFIERS.build(spec, **shape) for spec in modifiers],
            selector=built_selector,
            anchored=anchored,
            owners=owners,
        )

    def forward(
        self,
        x: Tensor,
        ctx: RouteContext,
        bank: ExpertBank,
        adapter: str,
        site: str,
        mask: Tensor | None,
        scores: Tensor | None = None,
    ) -> RoutingDecision:
        """Route the tokens of one site and leave a record in the context.

        Args:
            x: Tokens, [N, d], in any dtype.
            ctx: Context of this model forward.
            bank: The experts of the site.
            adapter: Name of the adapter.
            site: Path of the adapted layer.
            mask: True for real tokens, bool [N]; None if there is no padding.
            scores: Logits of the scorer, [N, E], if they are known already (`Scorer.rows`).

        Returns:
            The decision over the experts of the bank, [N, E]; the record has null experts too.
        """
        nulls = self.selector.nulls
        key = ctx.enter_site(adapter, site)
        device = x.device.type
        # Entering autocast costs more than asking for it.
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if scores is None:
                scores = self.scorer(x, ctx, bank)
            changed = ctx.recording and (len(self.modifiers) > 0 or self.owners is not None)
            if changed:
                scores = inject(scores, ctx, key, "scores")
            logits = Logits(select=scores, weight=scores)
            for modifier in self.modifiers:
                logits = modifier(logits, x, ctx)
            if self.owners is not None:
                logits = pool_columns(logits, self.owners)
            offset = ctx.offsets.get((adapter, site))
            if offset is not None:
                logits = logits.shifted(F.pad(offset.to(logits.weight), (0, nulls)))
            if ctx.recording:
                marked = inject(logits.weight, ctx, key)
                logits = logits._replace(
                    select=marked if logits.select is logits.weight else logits.select, weight=marked
                )
            decision = self.selector(logits, ctx)
        if ctx.recording:
            ctx.record(
                key,
                RoutingRecord(
                    site=site,
                    logits=kept(logits.weight),
                    gates=decision.gates.detach(),
                    selected=decision.selected,
                    mask=mask,
                    nulls=nulls,
                    scores=kept(scores) if changed else None,
                    expert_groups=self.expert_groups,
                    by_label=key in ctx.decided_by_label,
                    domains=ctx.flat_domain_ids(len(x)),
                    anchor=self._anchor_logits(x, ctx),
                    stack=ctx.stack_number,
                    pool=self.pool,
                ),
            )
        if nulls == 0:
            return decision
        return RoutingDecision(*(part[..., :-nulls] for part in decision))

    @torch.no_grad()
    def _anchor_logits(self, x: Tensor, ctx: RouteContext) -> Tensor | None:
        """Return the logits of the anchor, [N, E], if there is one; rows without one are anchored here."""
        anchor = getattr(self, "anchor", None)
        if anchor is None or not ctx.training or in_backward():
            return None
        anchor.copy_(torch.where(anchor.isnan(), getattr(self.scorer, str(self.scorer.rows)), anchor))
        return F.linear(x, anchor)

    def after_step(self, sums: dict[str, Tensor]) -> None:
        """Let scorer and modifiers update their buffers, once per optimizer step."""
        for part in (self.scorer, *self.modifiers):
            part.after_step(sums)

    @property
    def expert_groups(self) -> Tensor | None:
        """Group of each expert, int [E], if a modifier tells groups apart."""
        found = [modifier.expert_groups for modifier in self.modifiers if hasattr(modifier, "expert_groups")]
        return cast(Tensor, found[0]) if found else None

    def has_constant_gates(self, num_experts: int) -> bool:
        """Return whether the gates are the same for every token, so that the mixture is one matrix."""
        if num_experts == 1 and self.selector.unit_gate_for_one_expert:
            return True
        return self.scorer.input_independent and len(self.modifiers) == 0
