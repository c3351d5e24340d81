"""One decision per sequence inside a model: when it is made, how long it holds, what a layer gets of it.

Before a forward, each adapter with a `sample_router` needs a decision about every sample. It comes, in this
order, from

1. what `generate` decided about its prompts, for as long as it runs;
2. the key-value cache of earlier tokens, on which the decision is left as a note;
3. the batch itself: `adapter_ids` (names or numbers, None or -1 for unknown), or `domain_ids`;
4. the router: the mean of the prompt's hidden states after block `l`. If no expert of the adapter sits in
   blocks 1 to `l`, they are those of the same forward; else the base alone runs up to block `l` first.

Where an adapter adds its scores to the logits of tokens (`SampleConfig.adds`) its layers decide, and all of
this is about the scores.

Only real tokens count, and of a sequence with `labels` only those that are not to be predicted; `prompt_mask`
[B, S] says otherwise.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moe_adapt.errors import UserError
from moe_adapt.routing.sample import SampleRoutes, SampleRule
from moe_adapt.routing.sample.routes import decide
from moe_adapt.tuner.blocks import block_features, block_paths, hidden_of
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.sample_heads import SampleHeads
from moe_adapt.tuner.sample_tensors import HOLDER, SampleTensors, rule_name, sample_shapes

__all__ = ["FOR_ROUTERS", "SampleRouting"]

#: Arguments of a forward that are for routers and not for the model.
FOR_ROUTERS = ("domain_ids", "adapter_ids", "prompt_mask", "token_mask")

_IGNORED = -100


class _Enough(Exception):
    """The base has run as far as it has to."""


class SampleRouting:
    """Decides about samples for the composed adapters of a model.

    Args:
        model: The base model; it gets a module with the rules' tensors.
        session: What layers look into during a forward.
    """

    def __init__(self, model: nn.Module, session: Any) -> None:
        self.model, self.session = model, session
        self.configs: dict[str, SampleConfig] = {}
        self.inline: dict[str, bool] = {}
        self.heads = SampleHeads(model, session)
        self.layers: dict[str, Any] = {}
        self.held: dict[str, SampleRoutes] | None = None
        self.last: dict[str, SampleRoutes] = {}
        self._waiting: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        self._handles: dict[str, Any] = {}

    def add(self, adapter: str, config: SampleConfig, layers: list[Any]) -> None:
        """Make room for an adapter's rule, and listen to its block.

        Args:
            adapter: Its name.
            config: How it routes.
            layers: Its layers.

        Raises:
            UserError: If the model has no such block.
        """
        self.configs[adapter], self.layers[adapter] = config, layers[0]
        sites = [layer.site for layer in layers]
        if config.shape is not None:
            paths = block_paths(self.model)
            if config.block > len(paths):
                raise UserError(
                    f"the router reads block {config.block}, but this model has {len(paths)}; the adapter "
                    "was composed for another base model."
                )
            early = tuple(f"{path}." for path in paths[: config.block])
            inside = tuple(f"{path}." for path in paths)
            self.inline[adapter] = all(s.startswith(inside) and not s.startswith(early) for s in sites)
            block = self.model.get_submodule(paths[config.block - 1])
            self._handles[adapter] = block.register_forward_hook(partial(self._at_block, adapter))
        self.heads.add(adapter, config)
        if not hasattr(self.model, HOLDER):
            setattr(self.model, HOLDER, SampleTensors())
        device = self.device
        tensors = {name: torch.zeros(shape) for name, shape in sample_shapes(config).items()}
        if config.shape is not None:
            tensors |= {rule_name(name): t for name, t in SampleRule(config.shape).state_dict().items()}
        self.holder.add(adapter, {name: tensor.to(device) for name, tensor in tensors.items()})

    @property
    def holder(self) -> SampleTensors:
        """The module that holds the tensors."""
        return getattr(self.model, HOLDER)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def tensors(self, adapter: str) -> dict[str, Tensor]:
        """Return the tensors of an adapter's rule by their names in it."""
        config = self.configs[adapter]
        if config.shape is None:
            return {}
        names = SampleRule(config.shape).state_dict()
        return {name: self.holder.get(rule_name(name), adapter) for name in names}

    def forget(self, adapter: str) -> None:
        """Drop an adapter."""
        self.configs.pop(adapter, None)
        self.layers.pop(adapter, None)
        self.last.pop(adapter, None)
        self.heads.forget(adapter)
        if adapter in self._handles:
            self._handles.pop(adapter).remove()

    def remove(self) -> None:
        """Take everything off the model."""
        for adapter in list(self.configs):
            self.forget(adapter)
        self.heads.remove()
        if hasattr(self.model, HOLDER):
            delattr(self.model, HOLDER)

    def in_use(self, named: Collection[str] | None = None) -> list[str]:
        """Return the composed adapters that the next forward uses.

        Args:
            named: Adapters that the batch names; None if it names none.
        """
        return [
            adapter
            for adapter, layer in self.layers.items()
            if not layer.disable_adapters
            and (adapter in layer.active_adapters if named is None else adapter in named)
        ]

    def before_forward(self, adapters: list[str], inputs: Mapping[str, Any]) -> None:
        """Decide what can be decided before a forward.

        Args:
            adapters: Composed adapters that are in use.
            inputs: The forward's arguments by name.
        """
        context = self.session.context
        self.heads.active = None
        for adapter in adapters:
            routes = self._known(adapter, inputs)
            if routes is None and self.inline[adapter]:
                self._waiting[adapter] = (_counted(inputs), self._told(adapter, inputs))
                context.routes[adapter] = None
                continue
            context.routes[adapter] = self.last[adapter] = (
                self._asked_first(adapter, inputs) if routes is None else routes
            )
        self.heads.active = next((name for name in adapters if self.configs[name].head), None)

    def _known(self, adapter: str, inputs: Mapping[str, Any]) -> SampleRoutes | None:
        rows = _rows(inputs)
        kept = (self.held or {}).get(adapter)
        cache = inputs.get("cache") if inputs.get("cache") is not None else inputs.get("past_key_values")
        note = getattr(cache, "_moe_adapt_routes", None)
        if kept is None and note is not None and _past(cache):
            kept = note.get(adapter)
        if kept is not None:
            return kept.repeated(rows)
        told = self._told(adapter, inputs)
        config = self.configs[adapter]
        if told is None and config.shape is None:
            told = torch.full((rows,), -1)
        if told is not None and (config.shape is None or bool((told >= 0).all())):
            return self._by_id(config, told)
        return None

    def _told(self, adapter: str, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the place of each sample's expert, int [B], if the batch says it."""
        ids = inputs.get("adapter_ids")
        if ids is None:
            ids = inputs.get("domain_ids")
        if ids is None:
            return None
        values = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if len(values) != _rows(inputs):
            raise UserError(
                f"there are ids of {len(values)} samples for {_rows(inputs)}; give one for each, None where "
                "none is known."
            )
        return torch.tensor(self.configs[adapter].places(values), device=self.device)

    @staticmethod
    def _by_id(config: SampleConfig, told: Tensor) -> SampleRoutes:
        """Return decisions by id; without a router the base answers where none is given."""
        nothing = torch.full((len(told), len(config.experts)), torch.nan, device=told.device)
        gates = (told >= 0).float()[:, None]
        return SampleRoutes(told.clamp(min=0)[:, None], gates, nothing, nothing[:, 0], tuple(config.experts))

    def _asked_first(self, adapter: str, inputs: Mapping[str, Any]) -> SampleRoutes:
        """Run the base alone up to the router's block."""
        self._waiting[adapter] = (_counted(inputs), self._told(adapter, inputs))
        left_out = {*FOR_ROUTERS, "labels", "cache", "past_key_values", "use_cache", "output_hidden_states"}
        plain = {name: value for name, value in inputs.items() if name not in left_out}
        try:
            with self.bare(), torch.no_grad():
                self.model.forward(**plain)
        except _Enough:
            return self.last[adapter]
        finally:
            self._waiting.pop(adapter, None)
        raise UserError("the forward of this model did not reach the router's block.")

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Let every adapted layer be its base alone while the block runs, and stop at a waiting block."""
        self.session.bare = True
        try:
            yield
        finally:
            self.session.bare = False

    def _at_block(self, adapter: str, _: nn.Module, args: tuple, output: Any) -> None:
        if adapter not in self._waiting:
            return
        mask, told = self._waiting.pop(adapter)
        features = block_features(hidden_of(output), mask)
        routes = self.last[adapter] = self.decide(adapter, features, told)
        if self.session.bare:
            raise _Enough
        self.session.context.routes[adapter] = routes

    def decide(self, adapter: str, features: Tensor, told: Tensor | None = None) -> SampleRoutes:
        """Return the decision about samples of features [B, d]; `told` [B] has experts that are given."""
        config = self.configs[adapter]
        assert config.shape is not None
        tensors = self.tensors(adapter)
        features = features.to(tensors["weight"].device)
        scores, novelty = functional_call(SampleRule(config.shape), tensors, (features,))
        options = (config.k, config.temperature, config.threshold)
        return decide(scores, novelty, *options, known=told, uids=config.experts)

    def leave_note(self, output: Any) -> None:
        """Leave the decisions on the cache that a forward filled, for the tokens that follow."""
        context = self.session.context
        if context is None or not context.routes or not isinstance(output, Mapping):
            return
        cache = next((output[name] for name in ("cache", "past_key_values") if name in output), None)
        if cache is None or isinstance(cache, tuple):
            return
        for routes in context.routes.values():
            routes.held = True
        cache._moe_adapt_routes = dict(context.routes)

    @contextmanager
    def generating(self, adapters: list[str], inputs: Mapping[str, Any]) -> Iterator[None]:
        """Decide about prompts, and hold the decisions while the block runs.

        Args:
            adapters: Composed adapters that are in use.
            inputs: What `generate` got: ``input_ids`` [B, S], ``attention_mask``, ids of experts.
        """
        if self.held is not None or not adapters or _rows(inputs) == 0:
            yield
            return
        kept = {}
        for adapter in adapters:
            routes = self._known(adapter, inputs)
            routes = self._asked_first(adapter, inputs) if routes is None else routes
            routes.held = True
            kept[adapter] = self.last[adapter] = routes
        self.held = kept
        try:
            yield
        finally:
            self.held = None
            self.last |= kept


def _rows(inputs: Mapping[str, Any]) -> int:
    """Return how many samples a forward gets."""
    for name in ("input_ids", "inputs_embeds", "pixel_values", "x", "input", "input_values"):
        if isinstance(inputs.get(name), Tensor):
            return len(inputs[name])
    return next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 0)


def _past(cache: Any) -> bool:
    """Return whether a cache holds tokens."""
    length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else len(cache)
    return int(length) > 0


def _counted(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return which tokens of each sample decide, bool [B, S]; None for all."""
    prompt, mask, labels = (inputs.get(name) for name in ("prompt_mask", "attention_mask", "labels"))
    real = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if isinstance(prompt, Tensor):
        return prompt.bool() if real is None else prompt.bool() & real
    ids = inputs.get("input_ids")
    if isinstance(labels, Tensor) and isinstance(ids, Tensor) and labels.shape == ids.shape:
        asked = labels == _IGNORED
        asked = asked if real is None else asked & real
        everything = torch.ones_like(asked) if real is None else real
        return torch.where(asked.any(dim=1, keepdim=True), asked, everything)
    return real
