"""Where a model keeps the tensors of sample routers and heads: one module, as buffers by adapter.

It is a tuner layer to PEFT, which saves and loads what is in such layers and nothing else.
"""

from collections.abc import Mapping

from torch import Tensor

from moe_adapt.routing.sample import SampleRule
from moe_adapt.tuner.common import CommonTensors
from moe_adapt.tuner.peft_plugin import PREFIX
from moe_adapt.tuner.sample_config import SampleConfig

__all__ = ["HOLDER", "SampleTensors", "head_name", "rule_name", "sample_shapes"]

#: Name of the module in the base model.
HOLDER = f"{PREFIX}samples"


def rule_name(tensor: str) -> str:
    """Return the container of a tensor of the rule."""
    return f"{PREFIX}rule__{tensor}"


def head_name(expert: int, tensor: str) -> str:
    """Return the container of a tensor of an expert's head."""
    return f"{PREFIX}head__{expert}__{tensor.replace('.', '__')}"


def sample_shapes(config: SampleConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of an adapter by container, as its configuration says."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.shape is not None:
        rule = SampleRule(config.shape).state_dict()
        shapes |= {rule_name(name): tuple(value.shape) for name, value in rule.items()}
    for expert, uid in enumerate(config.experts if config.head else ()):
        shapes |= {head_name(expert, name): tuple(shape) for name, shape in config.heads[uid].items()}
    return shapes


class SampleTensors(CommonTensors):
    """Buffers of the composed adapters of a model."""

    def __init__(self) -> None:
        super().__init__(HOLDER)

    def add(self, adapter: str, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in, by container."""
        for container, value in tensors.items():
            self.put(container, adapter, value)
