"""Merging an adapter into the base weight, where that is exact: one expert, or gates that never change."""

import warnings
from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner.flat_state import FlatRouter
from moe_adapt.tuner.peft_plugin import AdapterLayer, check_adapters_to_merge
from moe_adapt.tuner.quantized import add_to_weight, is_quantized
from moe_adapt.tuner.site import SiteSpec

__all__ = ["MergesConstantGates"]


class MergesConstantGates(AdapterLayer):
    """A routed layer as something that may be merged."""

    site: str
    in_features: int
    specs: dict[str, SiteSpec]
    routers: dict[str, FlatRouter]

    @abstractmethod
    def bank(self, adapter_name: str, dtype: torch.dtype | None = None) -> ExpertBank:
        """Return the experts of an adapter."""

    def constant_gates(self, adapter_name: str) -> Tensor | None:
        """Return the gates [E] of an adapter if they are the same for every token, else None."""
        router = self.routers[adapter_name]
        bank = self.bank(adapter_name)
        if not router.skeleton.has_constant_gates(bank.num_experts):
            return None
        probe = torch.zeros(1, self.in_features, dtype=bank.a.dtype, device=bank.a.device)
        with torch.no_grad():
            context = RoutingSession().current(False)
            layer = cast(nn.Module, self)
            decision = router(layer, probe, context, bank, adapter_name, self.site, None)
        return decision.gates[0]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return whether the adapter is one fixed low-rank matrix here (see `get_delta_weight`)."""
        if adapter_name not in self.specs or self.bank(adapter_name).no_matrix:
            return False
        return self.constant_gates(adapter_name) is not None

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the change of weight that an adapter with constant gates makes, in the base weight's layout.

        Raises:
            NotImplementedError: If the gates depend on the token, or an expert is no change of weight: then
                no matrix is equal to the adapter.
        """
        reason = self.bank(adapter_name).no_matrix
        if reason:
            raise NotImplementedError(
                f"the adapter {adapter_name!r} cannot be merged: {reason}; keep it as an adapter "
                "(`moe-adapt export`)."
            )
        gates = self.constant_gates(adapter_name)
        if gates is None:
            raise NotImplementedError(
                f"the adapter {adapter_name!r} cannot be merged: its gates depend on the token, so no "
                "single weight matrix is equal to it; keep it as an adapter (`moe-adapt export`)."
            )
        bank = self.bank(adapter_name).own_factors()
        delta = sum(gate * bank.delta_weight(expert) for expert, gate in enumerate(gates))
        assert isinstance(delta, Tensor)
        return delta.t() if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight; only where that is exact (one expert, or constant gates).

        Args:
            safe_merge: Whether to refuse a result that is not finite.
            adapter_names: Adapters to merge; None merges the active ones.

        Raises:
            NotImplementedError: If gates depend on the token, or the base weight is quantised in a format
                that cannot be written again (bitsandbytes' can, with new rounding errors).
            ValueError: If `safe_merge` finds a value that is not finite.
        """
        base = self.get_base_layer()
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.specs:
                continue
            if is_quantized(base):
                self._merge_quantized(adapter, 1.0, safe_merge)
                self.merged_adapters.append(adapter)
                continue
            weight = cast(nn.Parameter, base.weight)
            merged = weight.data + self.get_delta_weight(adapter).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs or infinities in the merged weight of {self.site}: {adapter!r} is broken."
                )
            weight.data = merged
            self.merged_adapters.append(adapter)

    def _merge_quantized(self, adapter: str, sign: float, safe_merge: bool = False) -> None:
        delta = self.get_delta_weight(adapter).detach() * sign
        if safe_merge and not torch.isfinite(delta).all():
            raise ValueError(f"NaNs or infinities in the experts of {self.site}: {adapter!r} is broken.")
        add_to_weight(self.get_base_layer(), delta, self.site)

    def unmerge(self) -> None:
        """Subtract the merged adapters from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        base = self.get_base_layer()
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if is_quantized(base):
                self._merge_quantized(adapter, -1.0)
                continue
            weight = cast(nn.Parameter, base.weight)
            weight.data -= self.get_delta_weight(adapter).to(weight.dtype)
