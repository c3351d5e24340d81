"""What a model with routed adapters does around each of its forwards, whoever calls it.

One set of hooks serves all adapters of a model. It opens the route context, tells the stacks of a model
apart, and answers for auxiliary losses and router state. Models that were adapted by ``transformers``' own
``add_adapter`` have no PEFT model around them: `ModelHooks.find` gives the same answers there.
"""

import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.routing import AuxLoss, RouteContext
from moe_adapt.routing.context import in_backward
from moe_adapt.routing.session import RoutingSession
from moe_adapt.routing.stacks import INPUTS, Stack, is_stack
from moe_adapt.tuner.aux_losses import active_losses, deliver_aux_losses, sum_aux_losses, trace_aux_losses
from moe_adapt.tuner.common import remove_common
from moe_adapt.tuner.frozen_base import UncalledSites
from moe_adapt.tuner.layer import RoutedLoraLayer
from moe_adapt.tuner.loading import check_loaded_keys
from moe_adapt.tuner.moe_base import RoutedMoeGate
from moe_adapt.tuner.sample_routing import FOR_ROUTERS, SampleRouting

__all__ = ["ModelHooks", "require_hooks"]

#: Backward passes after which somebody should have collected auxiliary losses, or followed the optimizer.
_PATIENCE = {"losses": 10, "schedule": 10, "state": 200}
_CURE = "pass callbacks=[moe_adapt.tuner.RoutingCallback()] to Trainer, TRL or sentence-transformers"


class ModelHooks:
    """The hooks of a model with routed adapters, one set for all its adapters.

    Args:
        model: The base model.

    Attributes:
        session: Opens the context of each forward.
        add_aux_to_loss: Whether every training forward delivers its auxiliary losses, and adds their value to
            `output.loss` if there is one.
        uncalled: Tells of layers that no forward reached.
        parts: Weighted parts of the last auxiliary loss by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.session = RoutingSession()
        self.add_aux_to_loss = False
        self.samples = SampleRouting(model, self.session)
        self.uncalled = UncalledSites()
        self.parts: dict[str, Tensor] = {}
        self._model = [model]  # in a list, so that it is no submodule of anything
        self._names = [name for name in inspect.signature(model.forward).parameters if name != "self"]
        self._uncollected = dict.fromkeys(_PATIENCE, 0)
        self._running = False
        self._encoded: tuple[Callable[[], Tensor | None] | None, Stack | None] = (None, None)
        self._handles = [
            model.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            model.register_forward_hook(self.after_forward, with_kwargs=True),
            model.register_load_state_dict_post_hook(check_loaded_keys),
        ]

    @property
    def model(self) -> nn.Module:
        """The base model."""
        return self._model[0]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelHooks":
        """Return the hooks of a model, installing them the first time."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, cls):
                return owner
        return cls(model)

    @classmethod
    def find(cls, model: nn.Module) -> "list[ModelHooks]":
        """Return the hooks of every adapted model inside a module, such as a trainer's wrapped model."""
        found: dict[int, ModelHooks] = {}
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, cls):
                    found[id(owner)] = owner
        return list(found.values())

    def watch_stacks(self) -> None:
        """Let every part of the model with inputs of its own say what they are, if there are several."""
        if len(INPUTS & set(self._names)) < 2:
            return
        for name, module in self.model.named_modules():
            entered = [getattr(hook, "func", None) for hook in module._forward_pre_hooks.values()]
            if not name or self._enter_stack in entered or not is_stack(module):
                continue
            if any(isinstance(child, RoutedLoraLayer | RoutedMoeGate) for child in module.modules()):
                names = list(inspect.signature(module.forward).parameters)
                self._handles += [
                    module.register_forward_pre_hook(partial(self._enter_stack, names), with_kwargs=True),
                    module.register_forward_hook(self._leave_stack),
                ]

    def _enter_stack(self, names: list[str], module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if in_backward():
            return
        inputs = dict(zip(names, args, strict=False)) | kwargs
        if not self._running:  # called by itself, as generate() calls an encoder
            self.session.open(module, inputs)
        context = self.session.context
        assert context is not None
        output, stack = self._encoded
        context.enter_stack(Stack.of_call(inputs, context.stacks[-1], (output and output(), stack)))

    def _leave_stack(self, module: nn.Module, args: tuple, output: Any) -> None:
        context = self.session.context
        if in_backward() or context is None or len(context.stacks) < 2:
            return
        stack = context.stacks.pop()
        last = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
        self._encoded = (weakref.ref(last) if isinstance(last, Tensor) else None, stack)

    def before_forward(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Open the route context, decide about samples; take what is for routers only out of the inputs."""
        if self.session.context is not None and self.session.context.backward_seen:
            self._check_collected(self.session.context)
        self._running = True
        inputs = dict(zip(self._names, args, strict=False)) | kwargs
        self.session.open(model, inputs)
        self.samples.before_forward(self.samples.in_use(self.session.named), inputs)
        return args, {name: value for name, value in kwargs.items() if name not in FOR_ROUTERS}

    def after_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Deliver the auxiliary loss of a training forward, and add it to `output.loss`, if asked to."""
        self._running = False
        if in_backward():
            return
        self.session.close(output)
        self.samples.leave_note(output)
        self.uncalled.watch(model, output)
        if torch.compiler.is_compiling():
            trace_aux_losses(model, self.session)
        if not self.add_aux_to_loss:
            return
        found = deliver_aux_losses(model, self.session)
        if found is None:
            return
        value, self.parts = found
        loss = getattr(output, "loss", None)
        if isinstance(loss, Tensor):
            output.loss = loss + value * self._share(dict(zip(self._names, args, strict=False)) | kwargs)

    def _share(self, inputs: Mapping[str, Any]) -> Tensor | float:
        """Return the part of an optimizer step's tokens that this batch has, where the loss is such a part.

        With `num_items_in_batch` the losses of the micro-batches of a step add up; otherwise each is a mean.
        """
        items, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
        if items is None:
            return 1.0
        if not isinstance(labels, Tensor):
            return self.session.aux_scale
        shifts = str(getattr(self.model, "loss_type", "")).endswith("ForCausalLM")
        encodes = bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))
        counted = labels[..., 1:] if shifts and not encodes else labels
        return (counted != -100).sum() / torch.as_tensor(items, device=labels.device).clamp(min=1)

    def aux_loss(self, more: Mapping[str, AuxLoss] | None = None, configured: bool = True) -> Tensor:
        """Return the weighted sum of the auxiliary losses of the last training-mode forward, a scalar.

        Args:
            more: Losses on its decisions beside the configured ones, by name.
            configured: Whether the configured ones count.

        Raises:
            RuntimeError: If there was no such forward, or it is called twice for one forward.
        """
        total, self.parts = sum_aux_losses(self.model, self.session, more or {}, configured)
        return total

    def after_step(self) -> None:
        """Let routers update their buffers, once per optimizer step."""
        sums = self.session.sums
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for key in sorted(sums):
                torch.distributed.all_reduce(sums[key])
        for layer in self.model.modules():
            if not isinstance(layer, RoutedLoraLayer | RoutedMoeGate):
                continue
            for adapter, router in layer.routers.items():
                own = {name: value for (a, s, name), value in sums.items() if (a, s) == (adapter, layer.site)}
                if own:
                    router.after_step(layer, own)
        sums.clear()
        self._uncollected["state"] = 0

    def _check_collected(self, context: RouteContext) -> None:
        """Count what nobody collected after a backward pass; warn once if it goes on."""
        missed = {
            "losses": not context.aux_computed,
            "schedule": context.followed and not self.session.progress_kept,
            "state": bool(self.session.sums),
        }
        context.backward_seen = False  # counted
        for what, missing in missed.items():
            self._uncollected[what] += missing
            if self._uncollected[what] == _PATIENCE[what]:
                self._warn(what, context)

    def _warn(self, what: str, context: RouteContext) -> None:
        if what == "losses":
            adapters = sorted({adapter for adapter, *_ in context.records})
            names = sorted({name for adapter in adapters for name, _ in active_losses(self.model, adapter)})
            if not names:
                return
            text = (
                f"nobody took the auxiliary losses of the routed adapter ({', '.join(names)}) in the first "
                f"{_PATIENCE[what]} backward passes, so routers learn without them; {_CURE}, or add "
                "aux_loss() to the loss, or set aux_losses=[] if that is meant."
            )
        elif what == "schedule":
            text = (
                "the routed adapter follows a schedule, but nobody says how much of the training is done, so "
                f"it stands at its end; {_CURE}, or set the tuner's progress before each step."
            )
        else:
            text = (
                f"routers have state that moves once per optimizer step, but nobody moved it in the last "
                f"{_PATIENCE[what]} backward passes; {_CURE}, or call the tuner's follow(optimizer)."
            )
        warnings.warn(text, UserWarning, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoded": (None, None), "parts": {}}

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self.samples.remove()
        remove_common(self.model)


def require_hooks(model: nn.Module | None) -> list[ModelHooks]:
    """Return the hooks inside a module.

    Raises:
        UserError: If it has no routed adapter.
    """
    found = [] if model is None else ModelHooks.find(model)
    if not found:
        raise UserError(
            f"{type(model).__name__} has no routed adapter; wrap the model with peft.get_peft_model and a "
            "RoutedLoraConfig first."
        )
    return found
