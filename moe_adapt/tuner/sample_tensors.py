"""Where a model keeps the tensors of sample routers and heads: one module, as buffers by adapter.

It is a tuner layer to PEFT, which saves and loads what is in such layers and nothing else.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from moe_adapt.routing.sample import SampleRule
from moe_adapt.tuner.peft_plugin import PREFIX, AdapterLayer, BufferDict
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


class SampleTensors(nn.Module, AdapterLayer):
    """Buffers of the composed adapters of a model."""

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Identity()
        self.site, self.was_called = HOLDER, True
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, adapter: str, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in, by container."""
        for container, value in tensors.items():
            if not hasattr(self, container):
                setattr(self, container, BufferDict({}, persistent=True))
                self.other_param_names = (*self.other_param_names, container)
            getattr(self, container)[adapter] = value

    def get(self, container: str, adapter: str) -> Tensor:
        """Return a tensor, looked up afresh: loading may replace it."""
        return getattr(self, container)[adapter]
