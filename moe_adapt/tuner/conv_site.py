"""A frozen convolution with a routed mixture of LoRA experts beside it.

The router sees patches, the values under the kernel, and decides per position of the output or once per image
(`RoutedLoraConfig.granularity`). Routers whose logits are one matrix product with the patches get them from a
convolution with the router's rows; the others get the patches written out, `k^2` times the input.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.experts.conv import ConvGeometry, add_conv_experts
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.layer import RoutedLoraLayer
from moe_adapt.tuner.site import SiteSpec

__all__ = ["RoutedConvLayer"]


class RoutedConvLayer(RoutedLoraLayer):
    """Adds `s sum_e g_e B_e * A_e * x` to the output of a frozen 2-D convolution without groups.

    Args:
        base_layer: The convolution.
        site: Its path in the model.
        session: Opens the route context of each model forward.
    """

    other_param_names = (*RoutedLoraLayer.other_param_names, "per_image")

    def __init__(self, base_layer: nn.Module, site: str, session: RoutingSession) -> None:
        super().__init__(base_layer, site, session)
        self.geometry = ConvGeometry.of(cast(nn.Conv2d, self.get_base_layer()))
        self.per_image: dict[str, bool] = {}

    def update_layer(
        self, adapter_name: str, spec: SiteSpec, config: RoutedLoraConfig, trainable: bool = True
    ) -> None:
        """Create the tensors of an adapter; see `RoutedLoraLayer.update_layer`."""
        super().update_layer(adapter_name, spec, config, trainable)
        self.per_image[adapter_name] = config.granularity == "image"

    def _with_experts(self, active: Sequence[str], x: Tensor, result: Tensor) -> Tensor:
        dtype = result.dtype
        single = x.ndim == 3
        if single:
            x, result = x.unsqueeze(0), result.unsqueeze(0)
        for adapter in active:
            result = self._add_to_map(adapter, x, result)
        return (result.squeeze(0) if single else result).to(dtype)

    def _with_named_experts(self, names: Sequence[str], x: Tensor, result: Tensor) -> Tensor:
        if len(names) != len(x):
            raise UserError(
                f"adapter_names has {len(names)} names for {len(x)} samples; give one per sample."
            )
        mixed = result.clone()
        for adapter in [name for name in self.specs if name in names]:
            rows = torch.tensor([row for row, name in enumerate(names) if name == adapter], device=x.device)
            mixed[rows] = self._with_experts([adapter], x[rows], result[rows])
        return mixed

    def _add_to_map(self, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        """Return the base output [B, o, H, W] plus the mixture of one adapter."""
        bank = self.bank(adapter, dtype=x.dtype if self.base_compute[adapter] else None)
        router, dropout = self.routers[adapter], self.moe_adapt_dropout[adapter]
        rows = router.rows(self)
        size = result.shape[-2:]
        width = bank.a.shape[0] * bank.a.shape[1]
        hidden = logits = None
        if rows is not None and self._reads_logits_alone(router):
            if self._shares_input(x, bank, rows, dropout):
                both = self.geometry.down(x, torch.cat([bank.a.flatten(0, 1), rows]))
                hidden, logits = both[:, :width], both[:, width:]
            else:
                with self._precise(x):
                    logits = self.geometry.down(x.to(rows.dtype), rows)
        gates = self._gates(adapter, x, bank, logits, size)
        if hidden is None:
            inputs = dropout(self._cast_input_dtype(x, bank.a.dtype))
            hidden = self.geometry.down(inputs, bank.a.flatten(0, 1))
        return add_conv_experts(result, hidden, gates, bank)

    def _gates(
        self, adapter: str, x: Tensor, bank: ExpertBank, logits: Tensor | None, size: Sequence[int]
    ) -> Tensor:
        """Return the gates, [B, E, H, W] or [B, E, 1, 1], given logits [B, E', H, W] if they are known."""
        per_image = self.per_image[adapter]
        scores = tokens = None
        if logits is None:
            with self._precise(x):
                precise = x.to(torch.promote_types(x.dtype, torch.float32))
                tokens = (
                    self.geometry.mean_patch(precise)
                    if per_image
                    else self.geometry.patches(precise).flatten(0, 1)
                )
        else:
            scores = logits.mean(dim=(-2, -1)) if per_image else logits.permute(0, 2, 3, 1).flatten(0, 2)
            tokens = scores.new_zeros(()).expand(len(scores), self.in_features)
        context = self.session.current(self.training)
        context.arrive(self.site, x)
        decision = self.routers[adapter](self, tokens, context, bank, adapter, self.site, None, scores=scores)
        shape = (1, 1) if per_image else size
        return decision.gates.view(len(x), *shape, -1).permute(0, 3, 1, 2)

    @staticmethod
    def _precise(x: Tensor) -> Any:
        """Return a context without autocast: router arithmetic is in float32."""
        device = x.device.type
        active = torch.is_autocast_enabled(device)
        return torch.autocast(device, enabled=False) if active else nullcontext()

    @staticmethod
    def _reads_logits_alone(router: Any) -> bool:
        """Return whether nothing after the scorer looks at the router's input."""
        skeleton = router.skeleton
        return not hasattr(skeleton, "anchor") and not any(m.reads_input for m in skeleton.modifiers)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the change of the kernel that an adapter with constant gates makes, [o, C, k_h, k_w]."""
        weight = cast(Tensor, self.get_base_layer().weight)
        return super().get_delta_weight(adapter_name).reshape(weight.shape)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the kernel; see `MergesConstantGates.merge`.

        Raises:
            NotImplementedError: Also if the convolution changes its kernel in every forward.
        """
        base = self.get_base_layer()
        if type(base) is not nn.Conv2d and not type(base).__name__.startswith("Conv2dSame"):
            raise NotImplementedError(
                f"{self.site} is a {type(base).__name__}, whose kernel is not used as it is stored; the "
                "adapter cannot be merged into it: keep it as an adapter."
            )
        super().merge(safe_merge, adapter_names)
