"""A callback that gives routers what they need under `transformers.Trainer` and everything built on it.

    Trainer(..., callbacks=[RoutingCallback()])

The same line serves TRL's trainers, with a routed model or with ``peft_config=RoutedLoraConfig(...)``, and
``SentenceTransformerTrainer``. Three things happen:

* auxiliary losses reach the routers whatever loss the trainer differentiates, divided by the accumulation
  steps; their value is part of `output.loss` where the model computes one;
* schedules of routers follow the share of the steps that is done, and router state moves once per optimizer
  step, over all micro-batches and processes;
* statistics of the routing, and the parts of the auxiliary loss, are in the logs.

Several forwards before one backward (both sides of a pair of sentences) count with the mean of their losses.
Forwards without gradients, or with the adapter disabled, such as that of a reference policy, add nothing.
"""

from typing import Any

from torch import nn
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from moe_adapt.evaluation.routing import routing_stats
from moe_adapt.tuner.hooks import ModelHooks, require_hooks

__all__ = ["RoutingCallback"]


class RoutingCallback(TrainerCallback):
    """Auxiliary losses, schedules and state of routers under a `Trainer`.

    Args:
        log: Whether to add statistics of the routing to the logs, as ``route/...`` and ``aux/...``.
    """

    def __init__(self, log: bool = True) -> None:
        self.log = log
        self._hooks: list[ModelHooks] = []
        self._before: list[bool] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find the adapted model.

        Raises:
            UserError: If there is no routed adapter.
        """
        self._hooks = require_hooks(model)
        self._before = [hooks.add_aux_to_loss for hooks in self._hooks]
        for hooks in self._hooks:
            hooks.add_aux_to_loss = True

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Say how much of the training is done, and how much a micro-batch counts."""
        scaler = getattr(optimizer, "scaler", None)
        factor = 1.0 if scaler is None else float(scaler.get_scale())
        for hooks in self._hooks:
            hooks.session.progress = min(1.0, state.global_step / max(state.max_steps, 1))
            hooks.session.aux_scale = factor / max(args.gradient_accumulation_steps, 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the routers' state."""
        for hooks in self._hooks:
            hooks.after_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add statistics of the last forward to a training log."""
        if not self.log or logs is None or "loss" not in logs:
            return
        found = {name: value for hooks in self._hooks for name, value in _statistics(hooks).items()}
        logs.update(found)
        if state.log_history:
            state.log_history[-1].update(found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was found, with its schedules at their end."""
        for hooks, before in zip(self._hooks, self._before, strict=True):
            hooks.add_aux_to_loss = before
            hooks.session.progress, hooks.session.aux_scale = 1.0, 1.0
        self._hooks = []


def _statistics(hooks: ModelHooks) -> dict[str, float]:
    """Return means over the layers of the last recorded forward, and the parts of its auxiliary loss."""
    found = {f"aux/{name}": round(float(value), 6) for name, value in hooks.parts.items()}
    context = hooks.session.context
    records = [] if context is None else list(context.records.values())
    stats = [routing_stats(r.logits, r.gates, r.selected, r.mask, nulls=r.nulls) for r in records]
    means = {"entropy": [s.entropy for s in stats], "k": [s.mean_k for s in stats]}
    means["load_max"] = [float(s.load.max()) for s in stats]
    for name, values in means.items():
        if values:
            found[f"route/mean/{name}"] = round(sum(values) / len(values), 6)
    return found
