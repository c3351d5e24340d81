"""Record a routing trace while a model with a routed adapter runs.

    recorder = TraceRecorder(model.base_model, sites="layers.*mlp")
    for batch in batches:
        with recorder.forward(batch["input_ids"], batch["attention_mask"], groups=batch["labels"]):
            model(**batch)
    trace = recorder.trace()

Tokens of a site are matched with samples by their number: as many as there are samples and columns of the
mask (then padding is left out), or any other multiple of the samples, such as image patches or one pooled
vector.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.evaluation.coupling import router_expert_coupling, row_similarity
from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace, TokenTable, pack_bits
from moe_adapt.routing import RouteContext
from moe_adapt.routing.records import RoutingRecord
from moe_adapt.tuner.model import RoutedLoraModel, adapted_layers

__all__ = ["TraceRecorder", "router_geometry", "sample_hash"]


def sample_hash(row: Tensor) -> int:
    """Return a 63-bit hash of a sample's input: equal for equal values of equal type.

    Args:
        row: The input of one sample, without padding.

    >>> sample_hash(torch.tensor([5, 6])) == sample_hash(torch.tensor([5, 6, 7])[:2])
    True
    """
    data = row.detach().cpu().contiguous()
    digest = hashlib.blake2b(str((data.dtype, tuple(data.shape))).encode(), digest_size=8)
    digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


class TraceRecorder:
    """Collects the decisions of a tuner's sites, forward by forward.

    Args:
        tuner: The tuner.
        sites: Record the sites whose path contains a match of this regular expression; None records all.
        keep_probs: Keep the router's probabilities, needed for entropy and token-wise divergence.
        keep_token_ids: Keep token ids: the trace then holds the text.
        adapter: Name of the adapter; None takes the active one.

    Raises:
        UserError: If no site matches.
    """

    def __init__(
        self,
        tuner: RoutedLoraModel,
        sites: str | None = None,
        keep_probs: bool = True,
        keep_token_ids: bool = False,
        adapter: str | None = None,
    ) -> None:
        self.tuner = tuner
        self.adapter = adapter or tuner.active_adapters[0]
        self.keep_probs, self.keep_token_ids = keep_probs, keep_token_ids
        layers = [layer for layer in adapted_layers(tuner.model) if self.adapter in layer.specs]
        self.lineage = {layer.site: layer.specs[self.adapter].lineage for layer in layers}
        every = list(self.lineage)
        try:
            pattern = re.compile(sites or "")
        except re.error as problem:
            raise UserError(f"{sites!r} is no regular expression: {problem}.") from problem
        self.sites = [site for site in every if pattern.search(site)]
        if not self.sites:
            parts = {part for site in every for part in site.split(".")}
            raise UserError(
                f"no adapted layer matches {sites!r}.{did_you_mean(sites or '', parts)} "
                f"There are {len(every)}, such as {', '.join(every[:2])}."
            )
        self._hashes: list[int] = []
        self._groups: list[Tensor] = []
        self._tables: list[tuple[TokenTable, Tensor]] = []
        self._pieces: dict[str, list[tuple[SiteTrace, int]]] = {}

    @contextmanager
    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, groups: Tensor | None = None
    ) -> Iterator[None]:
        """Record the one forward of the model that runs in the block.

        Args:
            inputs: The samples: token ids [B, S], or anything else with one row per sample.
            mask: True (or 1) for real tokens, [B, S]; None if there is no padding.
            groups: Group of each sample, int [B]; -1 for none.

        Raises:
            RuntimeError: If no forward of the model ran.
            UserError: If a site's tokens cannot be matched with the samples.
        """
        session = self.tuner.hooks.session
        before = session.context
        with torch.inference_mode(), self.tuner.record():
            yield
        context = session.context
        if context is None or context is before or not context.records:
            raise RuntimeError("no forward of the model was recorded in the block.")
        self._add(context, inputs.cpu(), None if mask is None else mask.cpu().bool(), groups)

    def _add(self, context: RouteContext, inputs: Tensor, mask: Tensor | None, groups: Tensor | None) -> None:
        rows = inputs.shape[0]
        start = len(self._hashes)
        kept = [inputs[row] if mask is None else inputs[row][mask[row]] for row in range(rows)]
        self._hashes += [sample_hash(row) for row in kept]
        self._groups.append(torch.full((rows,), -1) if groups is None else groups.cpu().to(torch.int64))
        tables: dict[tuple[int, bool], int] = {}
        for (adapter, site, visit), record in context.records.items():
            if adapter != self.adapter or site not in self.sites:
                continue
            key = (record.gates.shape[0], record.mask is not None)
            if key not in tables:
                tables[key] = len(self._tables)
                self._tables.append(_token_table(record, inputs, start, self.keep_token_ids))
            keep = self._tables[tables[key]][1]
            name = site if visit == 0 else f"{site}#{visit}"
            self._pieces.setdefault(name, []).append((self._piece(record, keep), tables[key]))

    def _piece(self, record: RoutingRecord, keep: Tensor) -> SiteTrace:
        logits, gates, selected = (
            tensor.cpu()[keep] for tensor in (record.logits, record.gates, record.selected)
        )
        experts = gates.shape[1] - record.nulls
        gates, selected = gates[:, :experts], selected[:, :experts]
        first = logits.argmax(dim=-1).to(torch.int16)
        return SiteTrace(
            num_experts=experts,
            table=0,
            packed=pack_bits(selected),
            weights=gates[selected].to(torch.float16),
            first=first.masked_fill(first >= experts, -1),
            probs=logits.float().softmax(dim=-1).to(torch.float16) if self.keep_probs else None,
            nulls=record.nulls,
            origins=self.lineage[record.site],
        )

    def trace(self, group_names: Sequence[str] = (), meta: dict[str, Any] | None = None) -> RoutingTrace:
        """Return what was recorded.

        Args:
            group_names: Names of the groups; numbers if left out.
            meta: Where the trace comes from, as JSON types.

        Raises:
            UserError: If nothing was recorded.
        """
        if not self._hashes:
            raise UserError("nothing was recorded: there were no batches.")
        if not any(len(table.sample) for table, _ in self._tables):
            raise UserError("nothing was recorded: all tokens are padding; look at the attention mask.")
        groups = torch.cat(self._groups)
        names = list(group_names) or [str(group) for group in range(int(groups.max()) + 1)]
        layouts: dict[tuple[int, ...], int] = {}
        sites = {}
        for name, pieces in self._pieces.items():
            layout = tuple(table for _, table in pieces)
            number = layouts.setdefault(layout, len(layouts))
            sites[name] = _joined([piece for piece, _ in pieces], number)
        return RoutingTrace(
            sites=sites,
            tables=[self._joined_table(layout) for layout in layouts],
            samples=torch.tensor(self._hashes),
            groups=None if bool((groups < 0).all()) else groups,
            group_names=names,
            meta=meta or {},
        )

    def _joined_table(self, layout: tuple[int, ...]) -> TokenTable:
        parts = [self._tables[number][0] for number in layout]
        ids = [part.ids for part in parts if part.ids is not None]
        return TokenTable(
            sample=torch.cat([part.sample for part in parts]),
            position=torch.cat([part.position for part in parts]),
            ids=torch.cat(ids) if ids else None,
        )


def _joined(pieces: list[SiteTrace], table: int) -> SiteTrace:
    probs = [piece.probs for piece in pieces if piece.probs is not None]
    return SiteTrace(
        num_experts=pieces[0].num_experts,
        nulls=pieces[0].nulls,
        origins=pieces[0].origins,
        table=table,
        packed=torch.cat([piece.packed for piece in pieces]),
        weights=torch.cat([piece.weights for piece in pieces]),
        first=torch.cat([piece.first for piece in pieces]),
        probs=torch.cat(probs) if probs else None,
    )


def _token_table(
    record: RoutingRecord, inputs: Tensor, start: int, keep_ids: bool
) -> tuple[TokenTable, Tensor]:
    """Return the tokens of a record whose first sample is number `start`, and which rows they are [N]."""
    tokens, rows = record.gates.shape[0], inputs.shape[0]
    if tokens % rows:
        raise UserError(
            f"{record.site} sees {tokens} tokens for {rows} samples; leave it out of the trace, because its "
            "tokens cannot be matched with samples."
        )
    shape = (rows, tokens // rows)
    keep = torch.ones(shape, dtype=torch.bool) if record.mask is None else record.mask.cpu().view(shape)
    position = keep.cumsum(dim=1) - 1
    sample = torch.arange(start, start + rows)[:, None].expand(shape)
    ids = None
    if keep_ids and tuple(inputs.shape) == shape and not inputs.is_floating_point():
        ids = inputs[keep].to(torch.int32)
    table = TokenTable(sample[keep].to(torch.int32), position[keep].to(torch.int32), ids)
    return table, keep.flatten()


def router_geometry(tuner: RoutedLoraModel, adapter: str | None = None) -> dict[str, dict[str, float]]:
    """Return ``coupling`` and ``row_similarity`` of each site whose scorer has one row per expert.

    Args:
        tuner: The tuner.
        adapter: Name of the adapter; None takes the active one.
    """
    name = adapter or tuner.active_adapters[0]
    found = {}
    for layer in adapted_layers(tuner.model):
        if name not in layer.specs:
            continue
        bank = layer.bank(name)
        rows = layer.routers[name].tensors(layer).get("scorer.weight")
        if rows is None or len(rows) < bank.num_experts or rows.shape[1] != bank.a.shape[2]:
            continue
        rows = layer.specs[name].expert_rows(rows)
        stored = [bank.position(expert) for expert in range(bank.num_experts)]
        down, rows = bank.a.detach()[stored].float(), rows.detach().float()
        found[layer.site] = {"coupling": router_expert_coupling(rows, down)}
        if bank.num_experts > 1:
            found[layer.site]["row_similarity"] = row_similarity(rows)
    return found
