"""Which expert of a composed adapter a text is for, without running the experts.

The base model runs as the router needs it and nothing else is loaded: experts may live in another engine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.hub.composition.base import longest, open_base, open_tokenizer, text_features
from moe_adapt.hub.composition.folder import read_folder
from moe_adapt.hub.composition.tokens import TOKEN_ROUTERS
from moe_adapt.tuner.sample_config import SampleConfig

__all__ = ["ExpertChoice"]


class ExpertChoice:
    """The router of a composed adapter, with the base model that it reads.

    Args:
        folder: Folder of the composed adapter.
        backbone: Name or folder of the base model; None takes the one it was composed with.

    Attributes:
        experts: Names of the experts.

    Raises:
        UserError: If the folder is no composed adapter, has no router, or its base is not here.
    """

    def __init__(self, folder: str | Path, backbone: str | None = None) -> None:
        config, _, router, record = read_folder(Path(folder))
        name = backbone or record.backbone
        if router is None or (record.router or {}).get("name") in TOKEN_ROUTERS:
            raise UserError(
                f"{folder} was composed without a router over whole inputs, so it chooses nothing: name the "
                "expert in each request, or compose it with --router lda."
            )
        if name is None:
            raise UserError("it is not known what the adapter was composed on; give --base.")
        self.experts = tuple(record.experts)
        self.router, self.block = router, record.block
        self.sample = SampleConfig.of(config["sample_router"])
        self.model: Any = open_base(name, record.task)
        self.tokenizer = open_tokenizer(name)
        self.max_length = longest(self.tokenizer, self.model, record.max_length)

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """Return the expert of each text; None where the router leaves it to the base.

        Raises:
            UserError: If a text is empty.
        """
        features = text_features(self.model, self.tokenizer, texts, self.max_length, [self.block])[self.block]
        options = (1, self.sample.temperature, self.sample.threshold)
        return [name or None for name in self.router.decide(features, *options).names()]
