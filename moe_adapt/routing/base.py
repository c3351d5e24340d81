"""The parts of a router: what each gets, what it gives, and the registry where it is found.

    x [N, d] -- Scorer --> logits [N, E] -- LogitModifier* --> (select, weight) -- Selector -->
    RoutingDecision

Selecting experts and weighting them may use different logits (a load-balancing bias, say, changes only the
choice). All router arithmetic is in fp32 (fp64 for fp64 inputs), also under autocast.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.registry import Registry

if TYPE_CHECKING:
    from moe_adapt.experts import ExpertBank, PoolEdit
    from moe_adapt.routing.context import RouteContext
    from moe_adapt.routing.records import RecordGroup

__all__ = [
    "AUX_LOSSES",
    "MODIFIERS",
    "SCORERS",
    "SELECTORS",
    "AuxLoss",
    "ExpertLoss",
    "LogitModifier",
    "Logits",
    "RoutingDecision",
    "Scorer",
    "Selector",
    "SiteExperts",
]


class Logits(NamedTuple):
    """Router logits, [N, E] each.

    Attributes:
        select: What the selector ranks.
        weight: What the gates are computed from.
        forced: Experts that every token uses, bool [E], for selectors that know of them; None for none.
    """

    select: Tensor
    weight: Tensor
    forced: Tensor | None = None

    def shifted(self, offset: Tensor) -> "Logits":
        """Return the logits with a constant added to each column, [E]."""
        weight = self.weight + offset
        select = weight if self.select is self.weight else self.select + offset
        return self._replace(select=select, weight=weight)


class RoutingDecision(NamedTuple):
    """Which experts each token uses, and how much.

    Attributes:
        gates: Weight of each expert, [N, E]; zero where not selected. Rows need not sum to one.
        selected: Whether the expert is selected, bool [N, E].
    """

    gates: Tensor
    selected: Tensor


class Scorer(nn.Module, ABC):
    """Gives every token a logit per expert.

    Subclasses are built as `cls(in_features=d, num_experts=E, **options)` and take what they need of it.
    Their parameters and buffers are stored with the adapter under flat names, so parameter names must not
    contain ``__``.
    """

    #: True if the logits do not depend on the input: then the gates are constant and an adapter can be
    #: merged.
    input_independent: bool = False

    #: True if the logits are computed from the experts of the bank instead of from rows of its own.
    from_bank: bool = False

    #: True if experts are cells of a grid instead of rows: then none can be added or taken out by itself.
    on_grid: bool = False

    #: Name of the tensor `R` [E, d] of a scorer that is `x R^T` and nothing else. The layer may then compute
    #: logits together with the experts' hidden vectors instead of calling the scorer.
    rows: str | None = None

    #: Names of own submodules that are one for all sites of an adapter: stored, trained and counted once.
    common: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, x: Tensor, ctx: "RouteContext", bank: "ExpertBank") -> Tensor:
        """Return logits [N, E] for the tokens `x` [N, d]; `x` is fp32 (or fp64)."""

    def after_step(self, sums: dict[str, Tensor]) -> None:
        """Update own buffers, once per optimizer step; see `LogitModifier.after_step`."""


class LogitModifier(nn.Module, ABC):
    """Changes logits between scorer and selector: noise, temperature, a balancing bias, a steering vector.

    One that tells groups of experts apart has a buffer `expert_groups`, int [E]: the group (task) of each.
    """

    #: Whether the values of `x` matter, beside their number: if not, a convolution writes no patches out.
    reads_input: bool = True

    @abstractmethod
    def forward(self, logits: Logits, x: Tensor, ctx: "RouteContext") -> Logits:
        """Return the changed logits; `x` [N, d] are the tokens."""

    def edited(self, edit: "PoolEdit") -> None:
        """Adjust own tensors to an edit of the pool, after every slice was carried over by `edit.rows`.

        Tensors whose shape depends on `num_experts` are carried over by themselves.
        """

    def after_step(self, sums: dict[str, Tensor]) -> None:
        """Update own buffers, once per optimizer step.

        Args:
            sums: What `RouteContext.accumulate` added up at this site since the last step, over all
                processes, by name.
        """


class Selector(nn.Module, ABC):
    """Turns logits into gates. Selectors have options but no parameters."""

    #: Number of null experts: logits beyond the `E` experts, placed last, that mean "no expert".
    nulls: int = 0

    #: Name of the only scorer whose logits it is exact for, and that without modifiers; None for any.
    only_scorer: str | None = None

    #: True if a single expert always has the gate 1 (any softmax over its logits): then E = 1 can be merged.
    unit_gate_for_one_expert: bool = True

    def check(self, num_experts: int) -> None:
        """Raise `UserError` if the options do not fit a bank of `num_experts` experts."""
        kept = max(getattr(self, "k", 1), getattr(self, "keep_top_k", 0))
        if num_experts > 1 and kept > num_experts + self.nulls:
            raise UserError(
                f"the selector {type(self).__name__} keeps {kept} experts per token but a site has only "
                f"{num_experts + self.nulls}; lower k (or keep_top_k) or raise num_experts."
            )

    def slots(self, num_experts: int) -> int | None:
        """Return the most experts that a token can get, `K`; None if that may be any number."""
        return None

    @abstractmethod
    def forward(self, logits: Logits, ctx: "RouteContext") -> RoutingDecision:
        """Return the decision for logits [N, E + nulls], with as many columns; null experts get gate zero."""


class AuxLoss(nn.Module, ABC):
    """A loss on routing decisions, summed over the adapter's configured losses by `tuner.aux_loss()`.

    Args:
        weight: Coefficient in the total loss.
    """

    #: Whether the loss compares with the routing of the start (`RoutingRecord.anchor`).
    needs_anchor: bool = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, groups: Sequence["RecordGroup"]) -> Tensor:
        """Return the unweighted loss, a scalar, for the recorded decisions of one forward pass."""


@dataclass(frozen=True)
class SiteExperts:
    """The experts of one site as losses on parameters see them; tensors carry gradients.

    Attributes:
        site: Path of the layer.
        a: Down-projections in the router's order, [E, r, d]; [1, r, d] if the experts share one.
        b: Up-projections in the router's order, [o, E, r].
        scale: LoRA scale `s`.
        uids: Names of the experts.
        rows: Router rows [E, d] of a scorer that is one matrix product, else None.
        start: Buffers with the factors of the start, as `a` and `b`, NaN until they are taken; None if no
            loss asks for them.
    """

    site: str
    a: Tensor
    b: Tensor
    scale: float
    uids: Sequence[str]
    rows: Tensor | None = None
    start: tuple[Tensor, Tensor] | None = None


class ExpertLoss(AuxLoss):
    """An auxiliary loss on the experts themselves instead of on decisions."""

    #: Whether the loss compares with the factors of the start, which are then saved with the adapter.
    needs_start: bool = False

    @abstractmethod
    def forward(self, sites: Sequence[SiteExperts], progress: float) -> Tensor:  # type: ignore[override]
        """Return the unweighted loss, a scalar, at a share of the optimizer steps that are done."""


SCORERS: Registry[Scorer] = Registry("scorer")
MODIFIERS: Registry[LogitModifier] = Registry("logit modifier")
SELECTORS: Registry[Selector] = Registry("selector")
AUX_LOSSES: Registry[AuxLoss] = Registry("auxiliary loss")
