"""Tiny models and a stream of tiny instruction tasks, different enough that forgetting shows."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from moe_adapt.backbones import CausalAnswerer, ChoiceEncoder
from moe_adapt.learners import LEARNERS
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.streams import Instruction, InstructionTask, TaskStream, instruction_stream
from moe_adapt.tuner import RoutedLoraConfig
from tests.training.tiny import tiny_bert, tiny_llama

WORDS = [["red", "green", "blue"], ["cat", "dog", "cow"], ["one", "two", "six"]]
FFN = r".*layer\.\d+\.(intermediate|output)\.dense"


@cache
def folder(kind: str) -> str:
    make = tiny_bert if kind == "bert" else tiny_llama
    return str(make(Path(mkdtemp()) / kind))


def task(index: int, train: int = 12, test: int = 6) -> InstructionTask:
    """Which word of the task's three is in the text, among noise."""
    words, rng = WORDS[index], np.random.default_rng(index)

    def some(count: int) -> list[Instruction]:
        found = []
        for number in range(count):
            answer = words[number % len(words)]
            noise = "".join(rng.choice(list("qxzjkv"), size=4))
            found.append(Instruction(f"{noise} {answer} {index}{index}?", answer, tuple(words)))
        return found

    return InstructionTask(f"words {index}", some(train), some(test), {"toy": index})


def stream(tasks: int = 3, **options: Any) -> TaskStream:
    return instruction_stream([task(index, **options) for index in range(tasks)])


def encoder() -> ChoiceEncoder:
    return ChoiceEncoder(folder("bert"), max_length=24, temperature=0.1)


def writer() -> CausalAnswerer:
    return CausalAnswerer(folder("llama"), max_length=48)


ROUTED = {
    "sequential_instructions": {"tuner": ("soft", {"num_experts": 3})},
    "joint_instructions": {"tuner": ("soft", {"num_experts": 3})},
    "frozen_instructions": {},
    "same": {"tuner": ("soft", {"num_experts": 3}), "freeze_after": 2, "refresh_every": 2},
    "dymoe": {"tuner": ("dymoe", {"num_experts": 2, "selector": {"name": "top_k", "k": 2}})},
    "olora": {"tuner": ("lora_sum", {})},
    "prototype_lora": {"tuner": ("lora", {})},
    "replay_instructions": {"tuner": ("soft", {"num_experts": 3}), "per_task": 4, "replay_size": 2},
    "routing_anchor": {"tuner": ("soft", {"num_experts": 3}), "per_task": 16},
}


def learner(
    name: str, backbone: Any = None, seed: int = 0, tuner: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A learner by its short name, with an adapter that fits it."""
    backbone = encoder() if backbone is None else backbone
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {"epochs": 1, "batch_size": 6, "lr": 5e-3, **ROUTED[name], **options}
    if "tuner" in chosen:
        method, settings = chosen["tuner"]
        targets = FFN if isinstance(backbone, ChoiceEncoder) else "ffn"
        common = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": targets}
        chosen["tuner"] = RoutedLoraConfig(method=method, **{**common, **settings, **(tuner or {})})
    built = LEARNERS.get(name)(backbone=backbone, **chosen)
    assert isinstance(built, InstructionLearner)
    return built
