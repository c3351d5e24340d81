"""Heads of composed classifiers: every expert brings its own, and answers among its own classes.

The experts' classes stand side by side in the logits [B, C_1 + C_2 + ...], in the order of the experts. A
sample gets the logits of its own expert's head at that expert's columns, and the smallest number of the dtype
elsewhere, so that a softmax or argmax over all of them is one over its expert's classes. Heads may be modules
of any kind: the base model's own head runs with each expert's tensors.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moe_adapt.errors import UserError
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.sample_tensors import HOLDER, head_name

__all__ = ["SampleHeads"]


class SampleHeads:
    """The heads of the composed adapters of a model.

    Args:
        model: The base model.
        session: Knows the decisions of the current forward.

    Attributes:
        active: The adapter whose heads answer; None leaves it to the base's.
    """

    def __init__(self, model: nn.Module, session: Any) -> None:
        self.model, self.session = model, session
        self.active: str | None = None
        self._configs: dict[str, SampleConfig] = {}
        self._handles: dict[str, Any] = {}

    def add(self, adapter: str, config: SampleConfig) -> None:
        """Put an adapter's heads into the place of the base's.

        Raises:
            UserError: If the base has no such head.
        """
        if not config.head:
            return
        modules = dict(self.model.named_modules())
        if config.head not in modules:
            raise UserError(
                f"the adapter's experts have heads of their own at {config.head!r}, which this "
                f"{type(self.model).__name__} lacks; load the base with its classification head."
            )
        self._configs[adapter] = config
        if config.head not in self._handles:
            self._handles[config.head] = modules[config.head].register_forward_hook(self._answer)

    def forget(self, adapter: str) -> None:
        """Drop an adapter's heads."""
        self._configs.pop(adapter, None)

    def remove(self) -> None:
        """Give the base its own head back."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _answer(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Return the logits of each sample's own head, [B, ..., C]."""
        adapter = self.active
        if adapter is None or adapter not in self._configs:
            return output
        config, routes = self._configs[adapter], self.session.context.routes[adapter]
        widths = [config.classes[uid] for uid in config.experts]
        starts = [sum(widths[:place]) for place in range(len(widths))]
        x = args[0]
        lowest = torch.finfo(output.dtype).min
        logits = output.new_full((*output.shape[:-1], sum(widths)), lowest)
        chosen = routes.index.gather(1, routes.gates.argmax(dim=1, keepdim=True)).squeeze(1).to(x.device)
        for expert in chosen.unique().tolist():
            rows = (chosen == expert).nonzero().squeeze(1)
            uid = config.experts[expert]
            holder: Any = getattr(self.model, HOLDER)
            tensors = {
                name: holder.get(head_name(expert, name), adapter).to(x.device, x.dtype)
                for name in config.heads[uid]
            }
            self.active = None  # the call below comes through this hook again
            try:
                values = functional_call(module, tensors, (x[rows], *args[1:]))
            finally:
                self.active = adapter
            logits[rows, ..., starts[expert] : starts[expert] + widths[expert]] = values.to(output.dtype)
        return logits
