r"""Two traces of different texts: which experts does one use more, and how far did each text move?

`expert_contrast` compares loads, of any two traces of one adapter. With the gate mass $m_e$ of expert `e` and
a pseudo-count $\epsilon$,

$$c_e = \log \frac{m^A_e + \epsilon}{\sum_f m^A_f + E \epsilon}
      - \log \frac{m^B_e + \epsilon}{\sum_f m^B_f + E \epsilon},$$

which is 0 for equal traces and changes its sign when they change places. `routing_shift` compares pairs: the
same samples before and after a change of their text, whose tokens no longer match. Each sample's gates are
summed over its tokens, and the divergence of the two sums is averaged over samples.

Both are the defender's side of work that attacks routers; nothing here searches for inputs that do harm.

Reference: "Misrouter" and "RouteHijack" (abstracts); the formulas are ours.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.evaluation.divergence import jensen_shannon
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.evaluation.trace.use import expert_use

__all__ = ["expert_contrast", "routing_shift"]


def expert_contrast(a: RoutingTrace, b: RoutingTrace, pseudo: float = 1.0) -> dict[str, Tensor]:
    """Return the log-ratio of the loads of each site's experts, float64 [E]; above 0: the first uses it more.

    Args:
        a: The first trace.
        b: The second, of the same adapter over any texts.
        pseudo: Gate mass that is added to every expert, in tokens. Higher: rare experts count less.

    Raises:
        UserError: If the traces have no site in common, or other numbers of experts there.
    """
    if pseudo <= 0:
        raise UserError(f"the pseudo-count is above 0, got {pseudo}.")
    first, second = expert_use(a), expert_use(b)
    found = {}
    for site in _common(first, second):
        one, other = first[site] + pseudo, second[site] + pseudo
        found[site] = (one / one.sum()).log() - (other / other.sum()).log()
    return found


def routing_shift(clean: RoutingTrace, changed: RoutingTrace) -> dict[str, float]:
    """Return the mean over samples of the Jensen-Shannon divergence of their gates, in nats, by site.

    Args:
        clean: The samples as they are.
        changed: The same samples in the same order, changed.

    Raises:
        UserError: If the numbers of samples differ, or the traces are of different adapters.
    """
    samples = len(clean.samples)
    if len(changed.samples) != samples:
        raise UserError(
            f"the traces have {samples} and {len(changed.samples)} samples; record the same rows twice."
        )
    found = {}
    for site in _common(*({name: own.gates for name, own in t.sites.items()} for t in (clean, changed))):
        one, other = (_by_sample(trace, site, samples) for trace in (clean, changed))
        routed = (one.sum(dim=1) > 0) & (other.sum(dim=1) > 0)
        before, after = (values[routed] / values[routed].sum(dim=1, keepdim=True) for values in (one, other))
        found[site] = float(jensen_shannon(before, after).mean()) if bool(routed.any()) else 0.0
    return found


def _by_sample(trace: RoutingTrace, site: str, samples: int) -> Tensor:
    """Return the sums of gates of each sample, float64 [M, E]."""
    gates = trace.sites[site].gates.double().clamp(min=0)
    return torch.zeros(samples, gates.shape[1], dtype=torch.float64).index_add_(
        0, trace.table(site).sample.long(), gates
    )


def _common(first: dict[str, Tensor], second: dict[str, Tensor]) -> Iterator[str]:
    """Yield the sites of both, once they are known to have the same experts."""
    common = [site for site in first if site in second]
    if not common:
        raise UserError("the traces have no site in common; they are of different models or adapters.")
    for site in common:
        counts = [own[site].shape[-1] for own in (first, second)]
        if counts[0] != counts[1]:
            raise UserError(
                f"{site} has {counts[0]} experts in one trace and {counts[1]} in the other; record both with "
                "the same adapter."
            )
    yield from common
