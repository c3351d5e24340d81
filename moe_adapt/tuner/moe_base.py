r"""Adapt a base that is a mixture of experts itself: its gate gets our router, its fused experts get LoRA.

transformers' MoE blocks (Mixtral, OLMoE, Qwen-MoE and their kin) consist of a *gate*, which gives each token
the numbers and weights of its experts, and *experts*, whose weights are two fused tensors,
``gate_up_proj`` [E, 2 I, d] and ``down_proj`` [E, d, I] (GPT-OSS has them transposed, with biases). With
``target_modules="moe"``

* the gate's own logits go through the adapter's modifiers and selector (say `condense_bias` and `condenser`).
  How many experts a token gets, and whether their weights sum to one, is as in the base, unless condensers
  come on top (``budget="add"``). Without modifiers the base is unchanged;
* every expert gets a LoRA on both of its weights, `W_e + s B_e A_e`, which starts at zero.

Nothing is materialised: an expert that gets tokens runs its LoRA beside its weights. This is the place that
condenser experts were published for (arXiv 2604.23036); on dense bases they are our adaptation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank, LoraKind
from moe_adapt.routing import Router
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.flat_state import FlatRouter
from moe_adapt.tuner.peft_plugin import AdapterLayer
from moe_adapt.tuner.site import SiteSpec

__all__ = [
    "RoutedMoeExperts",
    "RoutedMoeGate",
    "is_moe_experts",
    "is_moe_gate",
    "num_moe_experts",
    "refuse_other_banks",
]


def is_moe_gate(module: nn.Module) -> bool:
    """Return whether a module is the gate of a MoE block: it gives logits, weights and numbers of experts."""
    weight = getattr(module, "weight", None)
    count = getattr(module, "num_experts", None)
    return (
        isinstance(getattr(module, "top_k", None), int)
        and isinstance(weight, Tensor)
        and weight.ndim == 2
        and weight.shape[0] == count
    )


def is_moe_experts(module: nn.Module) -> bool:
    """Return whether a module holds the fused experts of a MoE block."""
    fused = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(isinstance(value, nn.Parameter) and value.ndim == 3 for value in fused)


def num_moe_experts(module: nn.Module) -> int:
    """Return how many experts a gate chooses from, or fused experts are."""
    return len(module.weight if is_moe_gate(module) else module.gate_up_proj)  # type: ignore[arg-type]


def _is_transposed(experts: Any) -> bool:
    """Return whether fused weights are stored [E, d, 2 I] and [E, I, d], as GPT-OSS has them."""
    return experts.gate_up_proj.shape[2] == 2 * experts.down_proj.shape[1]


def _gated(experts: Any, gate_up: Tensor) -> Tensor:
    """Return what goes into the down-projection, [N, I]."""
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return experts.act_fn(gate) * up


def refuse_other_banks(config: RoutedLoraConfig, site: str) -> None:
    """Raise `UserError` if experts are to be anything but LoRAs, which is all that fused experts can take."""
    if not isinstance(config.bank_kind(), LoraKind):
        raise UserError(
            f"{site!r} belongs to a base that is a mixture itself, whose experts get LoRAs of their own; "
            f"bank={config.bank!r} cannot be used there."
        )


class _MoePart(nn.Module, AdapterLayer):
    """A part of a MoE block with adapters.

    Args:
        base_layer: The part.
        site: Its path in the model.
        session: Opens the route context of each model forward.
    """

    def __init__(self, base_layer: nn.Module, site: str, session: RoutingSession) -> None:
        super().__init__()
        self.base_layer, self.site, self.session = base_layer, site, session
        self.specs: dict[str, SiteSpec] = {}
        self.was_called = False
        self._disable_adapters = False
        self.merged_adapters: list[str] = []


class RoutedMoeGate(_MoePart):
    """The gate of a MoE block with an adapter's modifiers and selector."""

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("routers",)

    def __init__(self, base_layer: nn.Module, site: str, session: RoutingSession) -> None:
        super().__init__(base_layer, site, session)
        self.routers: dict[str, FlatRouter] = {}

    def update_layer(
        self, adapter_name: str, spec: SiteSpec, config: RoutedLoraConfig, trainable: bool = True
    ) -> None:
        """Build the router of an adapter.

        Raises:
            UserError: If more experts become condensers than a token has places for.
        """
        base: Any = self.get_base_layer()
        router = Router.build(
            "uniform",
            config.modifiers,  # type: ignore[arg-type]
            config.selector,  # type: ignore[arg-type]
            in_features=base.weight.shape[1],
            num_experts=spec.num_experts,
        )
        selector: Any = router.selector
        selector.k = base.top_k
        if hasattr(selector, "renormalize"):
            selector.renormalize = getattr(base, "norm_topk_prob", True)
        fixed = max((getattr(m, "condensers", 0) for m in router.modifiers), default=0)
        if fixed >= selector.k and getattr(selector, "budget", "add") == "replace":
            raise UserError(
                f"{self.site} gives a token {selector.k} experts, which {fixed} condensers would fill; take "
                "fewer condensers, or budget='add'."
            )
        router = router.to(torch.promote_types(base.weight.dtype, torch.float32))
        self.routers[adapter_name] = FlatRouter(self, adapter_name, router, trainable)
        self.specs[adapter_name] = spec
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [N, E], weights [N, K] and experts [N, K]; number `E` is an empty place."""
        self.was_called = True
        outputs = self.base_layer(hidden_states)
        active = [name for name in self.active_adapters if name in self.routers]
        if self.disable_adapters or not active:
            return outputs
        if len(active) > 1:
            raise UserError(f"{self.site} routes for one adapter at a time, not for {', '.join(active)}.")
        scores, weights, _ = outputs
        context = self.session.current(self.training)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        mask = context.arrive(self.site, tokens)
        experts = scores.shape[-1]
        empty = ExpertBank(tokens.new_zeros(experts, 1, 1), tokens.new_zeros(1, experts, 1), 1.0)
        precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
        decision = self.routers[active[0]](
            self, tokens, context, empty, active[0], self.site, mask, scores=precise
        )
        places = max(int(decision.selected.sum(dim=-1).max()), 1) if len(tokens) else weights.shape[-1]
        taken, index = decision.selected.to(torch.int8).topk(places, dim=-1)
        gates = decision.gates.gather(-1, index).to(weights.dtype)
        return scores, gates, index.masked_fill(taken == 0, scores.shape[-1])


class RoutedMoeExperts(_MoePart):
    """Fused experts of a MoE block with a LoRA on the weights of each."""

    adapter_layer_names: tuple[str, ...] = (
        "moe_adapt_gate_up_A",
        "moe_adapt_gate_up_B",
        "moe_adapt_down_A",
        "moe_adapt_down_B",
    )
    other_param_names: tuple[str, ...] = ("specs", "scales")

    def __init__(self, base_layer: nn.Module, site: str, session: RoutingSession) -> None:
        super().__init__(base_layer, site, session)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.scales: dict[str, float] = {}

    def update_layer(
        self, adapter_name: str, spec: SiteSpec, config: RoutedLoraConfig, trainable: bool = True
    ) -> None:
        """Create the factors of an adapter: `A` kaiming-uniform per expert, `B` zero."""
        base: Any = self.get_base_layer()
        for name in ("gate_up", "down"):
            weight = getattr(base, f"{name}_proj")
            experts, out, width = weight.shape
            if _is_transposed(base):
                out, width = width, out
            dtype = torch.promote_types(weight.dtype, torch.float32)
            down = torch.empty(experts, spec.r, width, dtype=dtype).uniform_(-(width**-0.5), width**-0.5)
            up = torch.zeros(out, experts, spec.r, dtype=dtype)
            if not config.init_weights:
                up.uniform_(-(spec.r**-0.5), spec.r**-0.5)
            factors = {"A": down, "B": up}
            for factor, value in factors.items():
                parameter = nn.Parameter(value.to(weight.device), requires_grad=trainable)
                getattr(self, f"moe_adapt_{name}_{factor}")[adapter_name] = parameter
        self.specs[adapter_name] = spec
        self.scales[adapter_name] = spec.scale(config.use_rslora)

    def _linear(self, name: str, expert: int, x: Tensor, active: list[str]) -> Tensor:
        base = self.get_base_layer()
        weight = getattr(base, f"{name}_proj")[expert]
        bias = getattr(base, f"{name}_proj_bias", None)
        out = F.linear(
            x, weight.t() if _is_transposed(base) else weight, None if bias is None else bias[expert]
        )
        for adapter in active:
            a, b = (getattr(self, f"moe_adapt_{name}_{factor}")[adapter] for factor in "AB")
            hidden = F.linear(x.to(a.dtype), a[expert])
            out = (out + F.linear(hidden, b[:, expert]) * self.scales[adapter]).to(out.dtype)
        return out

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts' outputs, [N, d].

        Args:
            hidden_states: Tokens, [N, d].
            top_k_index: Experts of each token, int [N, K]; `E` is an empty place.
            top_k_weights: Their weights, [N, K].
        """
        self.was_called = True
        active = [name for name in self.active_adapters if name in self.specs]
        if self.disable_adapters or not active:
            return self.base_layer(hidden_states, top_k_index, top_k_weights)
        base: Any = self.get_base_layer()
        result = torch.zeros_like(hidden_states)
        for expert in range(base.gate_up_proj.shape[0]):
            token, place = torch.where(top_k_index == expert)
            if len(token) == 0:
                continue
            gate_up = self._linear("gate_up", expert, hidden_states[token], active)
            output = self._linear("down", expert, _gated(base, gate_up), active)
            output = output * top_k_weights[token, place, None]
            result = result.index_add(0, token, output.to(result.dtype))
        return result
