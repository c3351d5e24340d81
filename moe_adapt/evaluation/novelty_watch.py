r"""An alarm in a stream without task borders: the inputs are no longer those that the experts know.

Each sample has a coverage gap `G` (`moe_adapt.evaluation.novelty`) to features of a reference, and a rank
among the gaps that held-out rows of the reference have, `p = (1 + #{G_i >= G}) / (n + 1)`. While the stream
stays as it was, `p` is uniform. A bet on small `p` is a fair game then: with stakes $\epsilon$,

$$M \leftarrow M \cdot (1 + \epsilon\,(\tfrac12 - p)),$$

capital does not grow in the mean, and reaches $1 / \alpha$ ever with a probability of at most $\alpha$
(Ville). Capital is spread over the stakes 0 and 1 and mixes a little at every step, so that it is not lost
while nothing happens and can be bet when something does. An alarm is $M \ge 1 / \alpha$.

The bound holds for exact ranks. Ours come from one reference of finite size, so it holds as nearly as that
stands for the stream; the reference should have some hundred rows.

Reference: Vovk et al., conformal test martingales ("Simple Jumper"), for the bets; "Transitive Expert Error"
(abstract) for what is watched. The combination is ours.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.evaluation.novelty import coverage_gap

__all__ = ["Bets", "NoveltyWatch", "halves", "upper_rank"]


def upper_rank(values: Tensor, calibration: Tensor) -> Tensor:
    """Return the share of a calibration set that is at least as large, in (0, 1], [N]; small: rare.

    Args:
        values: [N].
        calibration: Values of known rows, [n].

    >>> upper_rank(torch.tensor([0.5, 9.0]), torch.tensor([0.1, 0.6, 0.7])).tolist()
    [0.75, 0.25]
    """
    ordered = calibration.double().sort().values
    below = torch.searchsorted(ordered, values.double().contiguous())
    return (1 + len(ordered) - below).double() / (len(ordered) + 1)


def halves(count: int) -> tuple[Tensor, Tensor]:
    """Return two random halves of the numbers below `count`, the same ones every time, int64 each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: (count + 1) // 2], order[(count + 1) // 2 :]


class Bets:
    """Capital that grows if ranks are smaller than uniform.

    Args:
        alpha: Probability of an alarm, ever, while nothing changes. Lower: later alarms.
        jump: Share of the capital that is spread anew before each bet.

    Attributes:
        capital: What one unit has become.
    """

    def __init__(self, alpha: float = 1e-3, jump: float = 0.01) -> None:
        if not 0 < alpha < 1 or not 0 < jump < 1:
            raise UserError(f"alpha and jump lie between 0 and 1, got {alpha} and {jump}.")
        self.alpha, self.jump = alpha, jump
        self._accounts = [0.5, 0.5]

    @property
    def capital(self) -> float:
        """What one unit has become."""
        return sum(self._accounts)

    def bet(self, rank: float) -> bool:
        """Bet on the next rank being small; return whether the capital is an alarm."""
        spread = self.jump * self.capital / 2
        idle, playing = ((1 - self.jump) * account + spread for account in self._accounts)
        self._accounts = [idle, playing * (1.5 - rank)]
        return self.capital >= 1 / self.alpha


class NoveltyWatch:
    """Watches features, and says when the stream has become another one.

    The first `reference` rows are what is known: a random half are prototypes, the others calibrate. After
    an alarm the next rows join them, and the watch goes on.

    Args:
        reference: Rows that are taken before anything is watched, and after each alarm. Higher: surer ranks.
        alpha: See `Bets`.

    Attributes:
        alarms: Number of the row at which each alarm came, counted over all rows seen.
    """

    def __init__(self, reference: int = 256, alpha: float = 1e-3) -> None:
        if reference < 20:
            raise UserError(f"the reference needs 20 rows or more, got {reference}.")
        self.reference, self.alpha = reference, alpha
        self.alarms: list[int] = []
        self.seen = 0
        self._known: Tensor | None = None
        self._gaps: Tensor | None = None
        self._bets = Bets(alpha)
        self._new: list[Tensor] = []

    def observe(self, features: Tensor) -> bool:
        """Take rows in their order; return whether one of them is an alarm.

        Args:
            features: [N, d].
        """
        before = len(self.alarms)
        for row in features.detach().float().cpu():
            self.seen += 1
            if self._gaps is None or self._known is None:
                self._learn(row)
            elif self._bets.bet(float(upper_rank(coverage_gap(row[None], self._known), self._gaps))):
                self.alarms.append(self.seen - 1)
                self._gaps = None
        return len(self.alarms) > before

    def _learn(self, row: Tensor) -> None:
        self._new.append(row)
        if len(self._new) < self.reference:
            return
        rows = torch.stack(self._new)
        one, other = halves(len(rows))
        self._known = rows[one] if self._known is None else torch.cat([self._known, rows[one]])
        self._gaps = coverage_gap(rows[other], self._known)
        self._new, self._bets = [], Bets(self.alpha)
