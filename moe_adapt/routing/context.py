"""The context of one model forward: what routers may look at besides their input, and what they leave behind.

The context survives until the next forward, because gradient checkpointing runs layers again during the
backward pass. Such a second run is recognised (it happens inside a backward pass) and leaves no record, no
count, no new random draw.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.records import Point, RoutingRecord
from moe_adapt.routing.shared import Shared
from moe_adapt.routing.stacks import Stack

__all__ = ["Delivery", "RouteContext", "in_backward"]

SiteKey = tuple[str, str, int]


def in_backward() -> bool:
    """Return whether a backward pass runs in this thread, so that a forward now is a recomputation."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Delivery:
    """How much of their auxiliary losses forwards add to one backward pass, if no loss carries them.

    Several forwards before a backward, as for the two sides of a pair of sentences, count with their mean.

    Args:
        scale: What a single forward's auxiliary loss is multiplied by.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.forwards = 0
        self.spent = False

    @property
    def share(self) -> float:
        """Factor of the auxiliary loss of each forward."""
        return self.scale / max(self.forwards, 1)


class RouteContext:
    """State of one model forward.

    Args:
        token_mask: True for real tokens, [B, S] ([B, past + S] with a key-value cache), or None.
        input_ids: Token ids, [B, S], if the model got any.
        training: Whether the model is in training mode.
        recording: Whether sites leave a `RoutingRecord`.
        progress: Share of the task's optimizer steps that are done.
        domain_ids: Domain (task) of each sample, int [B], -1 for none; None if the model got none.
        sums: Where `accumulate` adds up, by adapter, site and name.
        sample_scores: Score of every expert for each sample, [B, E]; None if there are none.
        stack: Inputs of the model; None makes them of `token_mask` and `input_ids`.
        adapter_ids: Expert of each sample by name, None where unknown; None if the model got none.
        replay: Selections to be made again, bool [N, E] by site visit; None for none.
    """

    def __init__(
        self,
        token_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        training: bool = False,
        recording: bool = False,
        progress: float = 1.0,
        domain_ids: Tensor | None = None,
        sums: dict[tuple[str, str, str], Tensor] | None = None,
        sample_scores: Tensor | None = None,
        stack: Stack | None = None,
        adapter_ids: Sequence[str | int | None] | None = None,
        replay: Mapping[SiteKey, Tensor] | None = None,
    ) -> None:
        #: Inputs of the stack that runs now, the model's own first.
        self.stacks = [Stack(token_mask, input_ids) if stack is None else stack]
        self.training = training
        self.recording = recording
        self.followed = False
        self._progress = progress
        self.domain_ids = domain_ids
        self.sample_scores = sample_scores
        self.adapter_ids = adapter_ids
        self._replay = replay
        #: Decisions about whole samples, by adapter (`moe_adapt.routing.sample`); None until they are made.
        self.routes: dict[str, Any] = {}
        self.sums = {} if sums is None else sums
        #: Visits of sites where labels and not the router decided; auxiliary losses pass them by.
        self.decided_by_label: set[SiteKey] = set()
        self.site: SiteKey = ("", "", 0)
        self.records: dict[SiteKey, RoutingRecord] = {}
        self.aux_gradients: dict[tuple[SiteKey, Point], Tensor] = {}
        self.aux_scale: Tensor | None = None
        self.delivery: Delivery | None = None
        self.aux_computed = False
        #: Auxiliary loss and its parts as a compiler left them: differentiable, not yet taken.
        self.traced_aux: tuple[Tensor, dict[str, Tensor]] | None = None
        self.backward_seen = False
        #: What takes the marks of this forward off parameters.
        self.unmark: list[Callable[[], None]] = []
        #: What to add to the logits of a site, [E], by adapter and site.
        self.offsets: dict[tuple[str, str], Tensor] = {}
        #: What sites hand on to each other.
        self.shared = Shared()
        #: Gives the model's table of token embeddings, or None if it has none; None if no model is known.
        self.embeddings: Callable[[], Any] | None = None
        self._here = self.stacks[0]
        self._stacks_seen = 0
        self._stack_of: dict[str, Stack] = {}
        self._visits: dict[tuple[str, str], int] = {}
        self._recomputations: dict[tuple[str, str], int] = {}
        self._recorded_without_grad: set[SiteKey] = set()
        self._recomputed: set[SiteKey] = set()
        self._kept: dict[Hashable, Tensor] = {}

    @property
    def progress(self) -> float:
        """Share of the task's optimizer steps that are done; routers that ask for it need it kept."""
        self.followed = True
        return self._progress

    @property
    def elapsed(self) -> float:
        """The same for losses, which do without it."""
        return self._progress

    @property
    def stack_number(self) -> int:
        """Number of the stack of the site that arrived last."""
        return self._here.number

    def enter_stack(self, stack: Stack) -> None:
        """Let the sites that follow belong to an inner stack, until it leaves `stacks` again."""
        for new in (stack, stack.memory_stack):
            if new is not None and new.number == 0:
                self._stacks_seen += 1
                new.number = self._stacks_seen
        self.stacks.append(stack)

    def arrive(self, site: str, x: Tensor) -> Tensor | None:
        """Announce the input of a site, [..., d]; return its token mask [N], or None if all tokens count."""
        if in_backward():
            self._here = self._stack_of.get(site, self.stacks[0])
        else:
            self._here = self.stacks[-1].holding(x)
            self._stack_of[site] = self._here
        return self._here.flat_mask(x.shape[:-1])

    def enter_site(self, adapter: str, site: str) -> SiteKey:
        """Announce that the router of a site runs now; return the key of this visit.

        Raises:
            RuntimeError: If a reentrant checkpoint recomputes a site more often than it ran.
        """
        visits = self._visits.get((adapter, site), 0)
        if not in_backward():
            self._visits[adapter, site] = visits + 1
            self.site = (adapter, site, visits)
            return self.site
        self.site = (adapter, site, max(visits - 1, 0))
        self._recomputations[adapter, site] = self._recomputations.get((adapter, site), 0) + 1
        if self.site in self._recorded_without_grad:
            if visits > 1 or self.site in self._recomputed:
                raise RuntimeError(
                    f"reentrant gradient checkpointing recomputed the site {site!r} more than once for "
                    "one forward; a layer that runs several times in a forward needs use_reentrant=False."
                )
            self._recomputed.add(self.site)
        return self.site

    def record(self, key: SiteKey, record: RoutingRecord) -> None:
        """Keep the decision of a site, unless this run is a recomputation."""
        if self.recording and not in_backward():
            self.records[key] = record
            if not torch.is_grad_enabled():
                self._recorded_without_grad.add(key)

    def keep(self, compute: Callable[[], Tensor], name: str = "") -> Tensor:
        """Return a tensor that stays the same when checkpointing runs the site again.

        Args:
            compute: Gives the tensor.
            name: Tells several tensors of one site apart.

        Raises:
            RuntimeError: If the site is recomputed more often than it ran.
        """
        self._check_own_forward()
        key = (*self.site, name)
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def draw(self, sample: Callable[[], Tensor], name: str = "") -> Tensor:
        """Return a random tensor that stays the same when checkpointing runs the site again.

        That run samples too, so that what is drawn later, such as dropout, is the same as well.

        Args:
            sample: Draws the tensor.
            name: Tells several draws of one site apart.

        Raises:
            RuntimeError: If the site is recomputed more often than it ran.
        """
        if in_backward():
            sample()
        return self.keep(sample, name)

    def num_samples(self, tokens: int) -> int:
        """Return how many sequences `tokens` tokens of the site that arrived last are, `B`.

        Raises:
            UserError: If that cannot be told.
        """
        samples = self._here.samples
        if not samples or tokens % samples:
            raise UserError(
                f"the router of {self.site[1]!r} works per sequence, but {tokens} tokens are no whole number "
                "of them; pass input_ids or pixel_values by name, or choose per batch or token."
            )
        return samples

    def replayed(self) -> Tensor | None:
        """Return what this site is to select again, bool [N, E], or None if it is free."""
        return None if self._replay is None else self._replay.get(self.site)

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return a tensor that the first site of the running stack computes, at all of its sites.

        Gradients of all sites reach it, under gradient checkpointing too.

        Args:
            name: Tells several tensors apart.
            compute: Gives the tensor.

        Raises:
            RuntimeError: If the run is the recomputation of an earlier forward.
        """
        self._check_own_forward()
        return self.shared.once((self.site[0], self.stack_number, name), self.site, in_backward(), compute)

    def pass_on(self, name: str, tokens: int, update: Callable[[Tensor | None], Tensor]) -> Tensor:
        """Return the new value of a state that runs through a stack's sites, in the order of their calls.

        Gradients flow back along the sites, under gradient checkpointing too. Sites with other numbers of
        tokens, such as those on pooled vectors, have a state of their own.

        Args:
            name: Tells several states apart.
            tokens: Number of tokens, `N`.
            update: Gives the new state from that of the site before, or from None at the first site.

        Raises:
            RuntimeError: If the run is the recomputation of an earlier forward.
        """
        self._check_own_forward()
        chain = (self.site[0], self.stack_number, name)
        return self.shared.pass_on(chain, self.site, in_backward(), tokens, update)

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add a tensor to a sum of this site that its router gets after the optimizer step.

        Counts training forwards only, and the recomputation of gradient checkpointing not at all.
        """
        if not self.training or in_backward():
            return
        adapter, site, _ = self.site
        key = (adapter, site, name)
        value = value.detach()
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def flat_domain_ids(self, tokens: int) -> Tensor | None:
        """Return the domain of each of `tokens` tokens, int [N], or None if the model got no `domain_ids`.

        Raises:
            UserError: If the tokens are no multiple of the samples.
        """
        return self._of_samples(self.domain_ids, "domain_ids", tokens)

    def flat_sample_scores(self, tokens: int) -> Tensor | None:
        """Return the scores of the samples of `tokens` tokens, [N, E], or None if there are none.

        Raises:
            UserError: If the tokens are no multiple of the samples.
        """
        routes = self.routes.get(self.site[0])
        return self._of_samples(self.sample_scores if routes is None else routes.added(), "scores", tokens)

    def _of_samples(self, table: Tensor | None, name: str, tokens: int) -> Tensor | None:
        if table is None:
            return None
        samples = len(table)
        if samples == 0 or tokens % samples:
            raise UserError(
                f"the router of {self.site[1]!r} sees {tokens} tokens for the {name} of {samples} "
                "samples; leave the layer out with exclude_modules."
            )
        return table.repeat_interleave(tokens // samples, dim=0)

    def _check_own_forward(self) -> None:
        adapter, site, _ = self.site
        if self._recomputations.get((adapter, site), 0) > self._visits.get((adapter, site), 0):
            raise RuntimeError(
                f"gradient checkpointing recomputed the site {site!r} more often than it ran, so that it is "
                "not known for which forward; call backward() once after each forward."
            )

    def flat_mask(self, leading_shape: Sequence[int]) -> Tensor | None:
        """Return the mask [N] of the site that arrived last, for an input [*leading_shape, d].

        None says that all tokens count: without padding, or for an input whose shape does not fit the mask
        (pooled vectors, image patches).
        """
        return self._here.flat_mask(leading_shape)

    def flat_input_ids(self, leading_shape: Sequence[int]) -> Tensor:
        """Return the token ids [N] of the site that arrived last, for an input [*leading_shape, d].

        Raises:
            UserError: If its stack got no `input_ids`, or the input is not one vector per token id.
            RuntimeError: If the site is recomputed more often than it ran.
        """
        self._check_own_forward()
        known = self._known_ids()
        ids = self._here.flat_ids(leading_shape)
        if ids is None:
            raise UserError(
                f"the router of {self.site[1]!r} needs the id of every token, but its input of shape "
                f"{[*leading_shape]} does not fit input_ids of shape {[*known.shape]}; "
                "leave the layer out with exclude_modules."
            )
        return ids

    def sequences(self) -> tuple[Tensor, Tensor | None]:
        """Return token ids and mask, [B, S] each, of the last site's stack; the mask is None without one.

        Raises:
            UserError: If the stack got no `input_ids`, or a key-value cache holds earlier ones.
            RuntimeError: If the run is the recomputation of an earlier forward.
        """
        self._check_own_forward()
        ids, mask = self._known_ids(), self._here.mask
        if self._here.cached if mask is None else mask.shape != ids.shape:
            raise UserError(
                f"the router of {self.site[1]!r} reads a text from its start, which a key-value cache leaves "
                "out; pass use_cache=False."
            )
        return ids, mask

    def _known_ids(self) -> Tensor:
        known = self._here.ids
        if not isinstance(known, Tensor):
            raise UserError(
                f"the router of {self.site[1]!r} needs token ids, but this part of the model was called "
                "without input_ids; pass them, or take a scorer that looks at the input, such as 'linear'."
            )
        return known
