"""The record of routing decisions over a set of tokens: what every routing metric is a function of.

A trace keeps, for every site and unpadded token: the selected experts (packed bits), their gates (float16),
the router's first choice, and the router's probabilities (float16) if asked for. Tokens are identified by
sample and position within the sample (padding not counted), samples by a hash of their input, so that two
traces can be checked to be of the same tokens although no text is kept; token ids are kept only if asked for.
Sites that see the same tokens share one `TokenTable`; a site behind a pooling sees one token per sample.

`moe_adapt.tuner.tracing.TraceRecorder` records one, `moe_adapt.evaluation.trace.file` stores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["RoutingTrace", "SiteTrace", "TokenTable", "pack_bits", "unpack_bits"]


def pack_bits(selected: Tensor) -> Tensor:
    """Return a selection with eight experts per byte, uint8 [N, ceil(E / 8)]; the first is the lowest bit.

    Args:
        selected: Selection, bool [N, E].

    >>> pack_bits(torch.tensor([[True, False, True]])).tolist()
    [[5]]
    """
    tokens, experts = selected.shape
    width = -(-experts // 8)
    padded = torch.zeros(tokens, width * 8, dtype=torch.uint8)
    padded[:, :experts] = selected
    return (padded.view(tokens, width, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, num_experts: int) -> Tensor:
    """Return the selection of `pack_bits`, bool [N, E].

    >>> unpack_bits(torch.tensor([[5]], dtype=torch.uint8), num_experts=3).tolist()
    [[True, False, True]]
    """
    bits = (packed[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, :num_experts].bool()


@dataclass(frozen=True)
class TokenTable:
    """The tokens that some sites see, sample by sample.

    Attributes:
        sample: Sample of each token, int32 [N], ascending.
        position: Position within the sample, int32 [N]; padding is not counted.
        ids: Token ids, int32 [N], if they were kept.
    """

    sample: Tensor
    position: Tensor
    ids: Tensor | None = None

    def same_tokens(self, other: "TokenTable") -> bool:
        """Return whether both list the same tokens in the same order."""
        return torch.equal(self.sample, other.sample) and torch.equal(self.position, other.position)


@dataclass(frozen=True)
class SiteTrace:
    """The decisions of one site.

    Attributes:
        num_experts: Number of experts, `E`.
        table: Which of the trace's token tables lists its tokens.
        packed: The selection as `pack_bits` gives it, uint8 [N, ceil(E / 8)].
        weights: Gates of the selected experts, token by token, float16 [picks].
        first: The router's first choice (largest logit) for each token, int16 [N]; -1 for a null expert.
        probs: Router probabilities, float16 [N, E + nulls], if they were kept.
        nulls: Number of null experts, which are no experts and are in the probabilities only.
        origins: Names of the experts that each expert descends from through edits of the pool; None if
            unknown.
    """

    num_experts: int
    table: int
    packed: Tensor
    weights: Tensor
    first: Tensor
    probs: Tensor | None = None
    nulls: int = 0
    origins: Sequence[Sequence[str]] | None = None

    @cached_property
    def selected(self) -> Tensor:
        """The selection, bool [N, E]."""
        return unpack_bits(self.packed, self.num_experts)

    @property
    def gates(self) -> Tensor:
        """The gates, float32 [N, E], zero where not selected."""
        gates = torch.zeros(self.selected.shape)
        gates[self.selected] = self.weights.float()
        return gates

    @property
    def tokens(self) -> int:
        """Number of tokens, `N`."""
        return len(self.packed)


@dataclass(frozen=True)
class RoutingTrace:
    """The decisions of some sites over the same samples.

    Attributes:
        sites: The sites by path, in the order of the model.
        tables: The token tables that sites refer to.
        samples: Hash of each sample's input, int64 [M].
        groups: Group of each sample (class, task, language), int64 [M], -1 for none; None if there are none.
        group_names: Names of the groups.
        meta: Where the trace comes from, as JSON types.
    """

    sites: Mapping[str, SiteTrace]
    tables: Sequence[TokenTable]
    samples: Tensor
    groups: Tensor | None = None
    group_names: Sequence[str] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = _inconsistency(self)
        if problem:
            raise UserError(f"the routing trace is inconsistent: {problem}.")

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the site with the most tokens saw."""
        return max((site.tokens for site in self.sites.values()), default=0)

    def table(self, site: str) -> TokenTable:
        """Return the tokens of a site."""
        return self.tables[self.sites[site].table]

    def token_groups(self, site: str) -> Tensor | None:
        """Return the group of each token of a site, int64 [N], or None without groups."""
        return None if self.groups is None else self.groups[self.table(site).sample.to(torch.int64)]


def _inconsistency(trace: RoutingTrace) -> str:
    """Return what does not fit together in a trace, or nothing."""
    samples = len(trace.samples)
    if not isinstance(trace.meta, Mapping) or not all(isinstance(name, str) for name in trace.group_names):
        return "what describes it has values of another type"
    if trace.groups is not None and len(trace.groups) and int(trace.groups.min()) < -1:
        return f"a sample is in group {int(trace.groups.min())}"
    if trace.groups is not None:
        if len(trace.groups) != samples:
            return f"it has {samples} samples but groups of {len(trace.groups)}"
        if len(trace.groups) and int(trace.groups.max()) >= len(trace.group_names):
            return f"a sample is in group {int(trace.groups.max())} of {len(trace.group_names)}"
    for number, table in enumerate(trace.tables):
        lengths = {len(column) for column in (table.sample, table.position, table.ids) if column is not None}
        if len(lengths) != 1:
            return f"the columns of token table {number} differ in length"
        known = len(table.sample) == 0 or 0 <= int(table.sample.min()) <= int(table.sample.max()) < samples
        if not known:
            return f"token table {number} refers to samples that are not there"
    for name, site in trace.sites.items():
        if not all(type(value) is int for value in (site.table, site.num_experts, site.nulls)):
            return f"{name} is described by values of another type"
        if site.num_experts < 1 or site.nulls < 0:
            return f"{name} has {site.num_experts} experts and {site.nulls} null experts"
        if not 0 <= site.table < len(trace.tables):
            return f"{name} refers to a token table that is not there"
        tokens = len(trace.tables[site.table].sample)
        shapes = {
            "selection": (site.packed, (tokens, -(-site.num_experts // 8))),
            "first choice": (site.first, (tokens,)),
            "probabilities": (site.probs, (tokens, site.num_experts + site.nulls)),
        }
        for what, (tensor, shape) in shapes.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                return f"the {what} of {name} has shape {tuple(tensor.shape)} instead of {shape}"
        if len(site.first) and not -1 <= int(site.first.min()) <= int(site.first.max()) < site.num_experts:
            return f"a first choice of {name} is none of its {site.num_experts} experts"
        if site.origins is not None and len(site.origins) != site.num_experts:
            return f"{name} has {site.num_experts} experts but origins of {len(site.origins)}"
        if len(site.weights) != int(site.selected.sum()):
            return f"{name} has {len(site.weights)} gates for {int(site.selected.sum())} selected experts"
    return ""
