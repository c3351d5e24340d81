"""Carry an optimizer over an edit of the pool: new tensors in the old groups, moments moved with experts.

Moments belong to the factors as they are. A copy may take them along (or none, or half of them); a merged
expert starts without, because its factors are others.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import PoolEdit
from moe_adapt.tuner.layer import RoutedLoraLayer

__all__ = ["OptimizerState", "Swap", "differing_dim"]

#: What becomes of the moments of a copied expert.
OptimizerState = Literal["copy", "reset", "scale"]

_FACTORS = {"moe_adapt_A": 0, "moe_adapt_B": 1}

#: Names of the groups of our own optimizers, for router tensors and for factors.
_ROLES = {False: "router", True: "experts"}


@dataclass
class Swap:
    """The parameters of one site before an edit.

    Attributes:
        adapter: Name of the adapter.
        edit: The edit.
        columns: What it does to the columns of the router.
        optimizer: The optimizer, or None.
        parameters: Parameters by container.
        live: Router indices of the trainable experts, in storage order.
    """

    adapter: str
    edit: PoolEdit
    columns: PoolEdit
    optimizer: torch.optim.Optimizer | None
    parameters: dict[str, nn.Parameter]
    live: list[int]

    @classmethod
    def of(
        cls,
        layer: RoutedLoraLayer,
        adapter: str,
        edit: PoolEdit,
        columns: PoolEdit,
        optimizer: torch.optim.Optimizer | None,
    ) -> "Swap":
        """Note the parameters of a site."""
        return cls(adapter, edit, columns, optimizer, _parameters(layer, adapter), _live(layer, adapter))

    def replace(self, layer: RoutedLoraLayer, mode: OptimizerState) -> None:
        """Put the site's parameters as they are now into the optimizer, in the place of those noted.

        Raises:
            UserError: If the optimizer holds none of the site's parameters.
        """
        if self.optimizer is None:
            return
        now = _parameters(layer, self.adapter)
        groups = self.optimizer.param_groups
        place = {id(p): group for group in groups for p in group["params"]}
        for name, parameter in now.items():
            old = self.parameters.get(name)
            kin = [place[id(p)] for key, p in self.parameters.items() if id(p) in place and _kin(key, name)]
            kin = kin or [group for group in groups if group.get("name") == _ROLES[name in _FACTORS]]
            if not kin:
                raise UserError(
                    f"the optimizer holds no parameter of {layer.site} beside which {name} belongs; build it "
                    "anew after the edit."
                )
            state = self.optimizer.state.pop(old, None) if old is not None else None
            if old is None or id(old) not in place:
                kin[0]["params"].append(parameter)
            else:
                _exchange(place[id(old)]["params"], old, parameter)
            if old is not None and state:
                self.optimizer.state[parameter] = {
                    key: self._moved(value, name, old, parameter, layer, mode) for key, value in state.items()
                }
        for name in self.parameters.keys() - now.keys():
            gone = self.parameters[name]
            self.optimizer.state.pop(gone, None)
            if id(gone) in place:
                params = place[id(gone)]["params"]
                params[:] = [p for p in params if p is not gone]

    def _moved(
        self, value: Any, name: str, old: Tensor, new: Tensor, layer: RoutedLoraLayer, mode: OptimizerState
    ) -> Any:
        if not isinstance(value, Tensor) or value.shape != old.shape:
            return value
        factor = _FACTORS.get(name)
        dim = factor if factor is not None else differing_dim(old, new)
        if dim is None or (factor == 0 and layer.specs[self.adapter].shared_a):
            return value
        if factor is None:
            edit, moments = self.columns, value
            fresh = new.new_zeros(new.shape)
        else:
            edit = self.edit
            shape = list(value.shape)
            shape[dim] = edit.before
            moments = value.new_zeros(shape).index_copy(
                dim, torch.tensor(self.live, device=value.device), value
            )
            shape[dim] = edit.after
            fresh = value.new_zeros(shape)
        rows = edit.rows(moments, dim, fresh)
        factors = torch.ones(edit.after, dtype=rows.dtype, device=rows.device)
        factors[edit.merged] = 0
        factors[edit.copies] = {"copy": 1.0, "reset": 0.0, "scale": 0.5}[mode]
        rows = rows * factors.view([-1 if axis == dim else 1 for axis in range(rows.ndim)])
        if factor is not None:
            rows = rows.index_select(dim, torch.tensor(_live(layer, self.adapter), device=rows.device))
            more = [width - have for width, have in zip(new.shape, rows.shape, strict=True)]
            rows = nn.functional.pad(rows, [n for extra in reversed(more) for n in (0, extra)])
        return rows


def _parameters(layer: RoutedLoraLayer, adapter: str) -> dict[str, nn.Parameter]:
    return {
        name: container[adapter]
        for name in layer.adapter_layer_names
        if adapter in (container := getattr(layer, name)) and isinstance(container[adapter], nn.Parameter)
    }


def _live(layer: RoutedLoraLayer, adapter: str) -> list[int]:
    spec = layer.specs[adapter]
    return list(spec.order or range(spec.num_experts))[spec.frozen :]


def _kin(one: str, other: str) -> bool:
    return (one in _FACTORS) == (other in _FACTORS)


def differing_dim(old: Tensor, new: Tensor) -> int | None:
    """Return the first dimension in which two shapes differ, or None."""
    return next((dim for dim, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b), None)


def _exchange(params: list[nn.Parameter], old: nn.Parameter, new: nn.Parameter) -> None:
    params[:] = [new if p is old else p for p in params]
