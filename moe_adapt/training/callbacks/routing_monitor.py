"""Log how routers use their experts while training, and draw it at the end."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from moe_adapt.evaluation.balance import max_violation
from moe_adapt.evaluation.plots import draw_routing
from moe_adapt.evaluation.routing import RoutingStats
from moe_adapt.files import write_file

__all__ = ["RoutingMonitor"]


class RoutingMonitor(L.Callback):
    """Log routing statistics; write ``routing.json`` and ``routing.png`` when training ends.

    Logged, averaged over sites: ``route/mean/entropy`` (of the router's probabilities, 1 is uniform),
    ``route/mean/load_max`` (largest share of picks that one expert gets), ``route/mean/max_vio`` (how far
    that is above an even share: 0 at balance, E - 1 if one takes all), ``route/mean/dead`` (experts that no
    token of the batch picked) and ``route/mean/k`` (experts per token). The load in the files is that of
    the last epoch, over the batches that were logged.

    Args:
        every_n_steps: How often to look; None takes the trainer's ``log_every_n_steps``. The first step and
            the last batch of an epoch are always looked at.
        per_site: Whether to log ``route/<site>/...`` too.
    """

    def __init__(self, every_n_steps: int | None = None, per_site: bool = False) -> None:
        self.every_n_steps = every_n_steps
        self.per_site = per_site
        self.history: list[dict[str, float]] = []
        self._load: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the load of a new epoch."""
        self._load, self._tokens = {}, {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the last forward, if it is time."""
        tuner: Any = getattr(pl_module, "tuner", None)
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = trainer.global_step
        seen = self.history[-1]["step"] if self.history else 0  # a step may take several batches
        last = batch_idx + 1 == trainer.num_training_batches
        if tuner is None or every == 0 or step == seen or not (last or step == 1 or step % every == 0):
            return
        stats: dict[str, RoutingStats] = tuner.routing_stats()
        for site, one in stats.items():
            load = one.load.cpu() * one.tokens
            self._load[site] = self._load[site] + load if site in self._load else load
            self._tokens[site] = self._tokens.get(site, 0) + one.tokens
        values = {site: _values(one) for site, one in stats.items()}
        mean = {
            key: sum(v[key] for v in values.values()) / len(values) for key in next(iter(values.values()))
        }
        self.history.append({"step": step, **mean})
        pl_module.log_dict({f"route/mean/{key}": value for key, value in mean.items()})
        if self.per_site:
            pl_module.log_dict(
                {f"route/{site}/{key}": x for site, v in values.items() for key, x in v.items()}
            )

    def report(self) -> dict[str, Any]:
        """Return the load of every site in the last epoch and the means over time, as JSON types."""
        load = {site: (total / max(self._tokens[site], 1)).tolist() for site, total in self._load.items()}
        return {"load": load, "history": self.history}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files."""
        dry: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not self.history or not trainer.is_global_zero or dry:
            return
        folder, report = Path(trainer.default_root_dir), self.report()
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "routing.json", json.dumps(report, indent=1) + "\n")
        if find_spec("matplotlib") is None:
            rank_zero_warn(
                "routing.png was not drawn: matplotlib is missing (pip install 'moe-adapt[plots]')."
            )
            return
        draw_routing(report, folder / "routing.png")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"history": self.history, "load": self._load, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's records."""
        self.history = state_dict["history"]
        self._load, self._tokens = state_dict["load"], state_dict["tokens"]


def _values(stats: RoutingStats) -> dict[str, float]:
    return {
        "entropy": stats.entropy,
        "load_max": float(torch.max(stats.load)),
        "max_vio": max_violation(stats.load),
        "dead": float(stats.dead_experts),
        "k": stats.mean_k,
    }
