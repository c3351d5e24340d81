r"""A gate vector per adapter and layer, which says for which tokens the adapter is good.

With the adapter frozen, `v` is trained for some steps while the adapter's output is multiplied by its gate:

$$y = W x + \sigma(v \cdot x)\, s B A x, \qquad v = 0 \text{ at the start}$$

It learns which tokens the adapter helps.

Reference: Muqeeth et al., "Learning to Route Among Specialized Experts for Zero-Shot Generalization",
arXiv 2402.05859.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.reading import read_tensors
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel
from moe_adapt.tuner.model import adapted_layers

__all__ = ["gate_rows", "gated_config", "read_gates", "train_gate"]


def train_gate(
    base: nn.Module,
    source: str,
    batches: Iterable[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    lr: float = 5e-3,
) -> dict[str, Tensor]:
    """Train the gate vectors of one ordinary LoRA; the base model comes back as it was.

    Args:
        base: The base model.
        source: The adapter: a folder, or a name on the Hub.
        batches: One step is taken per batch.
        loss_of: Returns the loss of a model on a batch.
        lr: Learning rate of AdamW.

    Returns:
        Gate vectors [d] by layer.

    Raises:
        UserError: If the adapter cannot be used, or there is no batch.
    """
    config = gated_config([source], scorer="linear", selector="sigmoid")
    trained = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    model: Any = peft.get_peft_model(base, config)
    tuner: RoutedLoraModel = model.base_model
    try:
        rows = {name: row for name, row in model.named_parameters() if row.requires_grad}
        for row in rows.values():
            nn.init.zeros_(row)
        optimizer = torch.optim.AdamW(rows.values(), lr=lr, weight_decay=0.0)
        steps = 0
        for batch in batches:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            steps += 1
        if not steps:
            raise UserError("a gate is trained on examples of what the adapter is good at; there are none.")
        return {
            layer.site: gate_rows(layer).detach().cpu()[0].clone() for layer in adapted_layers(tuner.model)
        }
    finally:
        tuner.unload()
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(trained[name])


def read_gates(path: Path) -> dict[str, Tensor]:
    """Return the gate vectors [d] by layer of a safetensors file.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give one with a gate vector per layer.")
    gates = read_tensors(path, "gates of an adapter")
    if not gates or any(gate.ndim != 1 or not gate.isfinite().all() for gate in gates.values()):
        raise UserError(f"{path} holds no gates: one finite vector per layer is expected.")
    return gates


def gated_config(sources: Any, scorer: str, selector: Any) -> RoutedLoraConfig:
    """Return the configuration of ordinary LoRAs under a router over tokens."""
    return RoutedLoraConfig(
        method="top_k", experts_from=sources, scorer=scorer, selector=selector, dropout=0.0, aux_losses=[]
    )


def gate_rows(layer: Any) -> Tensor:
    """Return the rows of a layer's scorer, [E, d]."""
    return layer.routers["default"].tensors(layer)["scorer.weight"]
