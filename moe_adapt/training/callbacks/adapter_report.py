"""Say what is trained when training starts, and which experts never moved when it ends."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from moe_adapt.tuner.flat_state import BANK_PREFIX

__all__ = ["AdapterReport", "expert_sums"]


def expert_sums(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return sums of each trainable expert's factors by site, [2, E], to see whether it moved.

    Experts that share `A` have the sums of `B` alone, [1, E]; those that share both, of their own tensors.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    sums: dict[str, Tensor] = {}
    for name, own in parameters.items():
        if f".{BANK_PREFIX}" in name:
            site = name.split(f".{BANK_PREFIX}")[0]
            moved = own.detach().double().flatten(1).sum(dim=1, keepdim=True).t().cpu()
            sums[site] = torch.cat([sums[site], moved]) if site in sums else moved
    for name, down in parameters.items():
        site = name.split(".moe_adapt_A.")[0]
        if site != name and site not in sums:
            up = parameters[name.replace(".moe_adapt_A.", ".moe_adapt_B.")]
            found = [down.detach().double().sum(dim=(1, 2)), up.detach().double().sum(dim=(0, 2))]
            sums[site] = torch.stack(found if len(down) == up.shape[1] else found[1:]).cpu()
    return sums


class AdapterReport(L.Callback):
    """Print the adapter's summary at the start, and the idle experts at the end of training.

    An expert is idle if neither of its factors changed since training started: no token was routed to it.

    Attributes:
        idle: Indices of the idle experts by site, after training.
    """

    def __init__(self) -> None:
        self.idle: dict[str, list[int]] = {}
        self._before: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the summary."""
        tuner: Any = getattr(pl_module, "tuner", None)
        if tuner is None:
            trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            _print(f"no adapter: training the head only, {trainable:,} parameters")
            return
        _print(str(tuner.summary()))
        self._before = expert_sums(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print how many experts trained."""
        if not self._before:
            return
        moved = {
            site: (sums != self._before[site]).any(dim=0) for site, sums in expert_sums(pl_module).items()
        }
        self.idle = {site: (~flags).nonzero().flatten().tolist() for site, flags in moved.items()}
        self.idle = {site: experts for site, experts in self.idle.items() if experts}
        trained, total = (int(sum(f.sum() for f in moved.values())), sum(len(f) for f in moved.values()))
        _print(f"experts trained: {trained} of {total}")
        for site, experts in list(self.idle.items())[:10]:
            _print(f"  never used: {site} experts {', '.join(map(str, experts))}")


@rank_zero_only
def _print(text: str) -> None:
    print(text, flush=True)
