"""Learners of instructions over toy models, and a tiny language model that writes."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from moe_adapt.backbones import CausalAnswerer
from moe_adapt.checks import ToyAnswerer
from moe_adapt.checks import toy_instructions as stream
from moe_adapt.learners import LEARNERS
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.tuner import RoutedLoraConfig
from tests.training.tiny import tiny_llama

__all__ = ["ROUTED", "learner", "stream", "writer"]


@cache
def _folder() -> str:
    return str(tiny_llama(Path(mkdtemp()) / "llama"))


def writer() -> CausalAnswerer:
    return CausalAnswerer(_folder(), max_length=48)


ROUTED: dict[str, dict[str, Any]] = {
    "sequential_instructions": {"tuner": ("soft", {"num_experts": 3})},
    "joint_instructions": {"tuner": ("soft", {"num_experts": 3})},
    "frozen_instructions": {},
    "same": {"tuner": ("soft", {"num_experts": 3}), "freeze_after": 2, "refresh_every": 2},
    "dymoe": {"tuner": ("dymoe", {"num_experts": 2, "selector": {"name": "top_k", "k": 2}})},
    "olora": {"tuner": ("lora_sum", {})},
    "prototype_lora": {"tuner": ("lora", {})},
    "compose_instructions": {"tuner": ("lora", {})},
    "replay_instructions": {"tuner": ("soft", {"num_experts": 3}), "per_task": 4, "replay_size": 2},
    "routing_anchor": {"tuner": ("soft", {"num_experts": 3}), "per_task": 16},
}


def learner(
    name: str, backbone: Any = None, seed: int = 0, tuner: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A learner by its short name, with an adapter that fits it."""
    backbone = ToyAnswerer() if backbone is None else backbone
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {"epochs": 1, "batch_size": 6, "lr": 5e-3, **ROUTED[name], **options}
    if "tuner" in chosen:
        method, settings = chosen["tuner"]
        targets = ["up", "down"] if isinstance(backbone, ToyAnswerer) else "ffn"
        common = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": targets}
        chosen["tuner"] = RoutedLoraConfig(method=method, **{**common, **settings, **(tuner or {})})
    built = LEARNERS.get(name)(backbone=backbone, **chosen)
    assert isinstance(built, InstructionLearner)
    return built
