"""The folder of a composed adapter: PEFT's two files, the router's statistics, and what they come from.

``adapter_config.json`` and ``adapter_model.safetensors`` are all that `PeftModel.from_pretrained` needs.
``router.safetensors`` holds the statistics that adding and removing go on from, and ``compose.json`` where
every expert came from. No text is kept.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.files import settle
from moe_adapt.hub.composition.tokens import TokenRouter
from moe_adapt.hub.folder import write_json
from moe_adapt.hub.load import CONFIG_FILE, WEIGHTS_FILE, read_tensors
from moe_adapt.reading import foreign, read_json
from moe_adapt.reading import read_tensors as read_tensors_of
from moe_adapt.routing.sample import SAMPLE_ROUTERS, SampleRouter

__all__ = ["COMPOSE_FILE", "ROUTER_FILE", "Record", "read_folder", "read_router", "write_folder"]

COMPOSE_FILE = "compose.json"
ROUTER_FILE = "router.safetensors"
#: Routers that tell classes of an expert apart have version 2, all others 1, which older releases read.
FORMAT_VERSION = 2


@dataclass
class Record:
    """What a composed adapter is made of.

    Attributes:
        backbone: What the base was opened by.
        base_model: What the adapters call their base.
        task: PEFT's name of their task.
        router: Short name and options of the router; None if experts are chosen by ids alone.
        block: After how many blocks the router reads.
        auto: Accuracy of every block under leave-one-out, if the block was chosen.
        k: Experts per sample; 0 for all.
        abstain: Share of an expert's own texts that may be left to the base; 0 never leaves any.
        max_length: Tokens read of an example.
        chat: Whether examples were put into the tokeniser's chat format.
        experts: By name: source, number of examples, of classes if their labels were there.
    """

    backbone: str | None
    base_model: str | None
    task: str | None
    router: dict[str, Any] | None
    block: int
    k: int
    abstain: float
    max_length: int
    auto: dict[str, float] = field(default_factory=dict)
    experts: dict[str, dict[str, Any]] = field(default_factory=dict)
    format_version: int = 1

    def check_expert(self, uid: str) -> None:
        """Raise `UserError` if there is no expert of that name."""
        if uid not in self.experts:
            raise UserError(
                f"there is no expert {uid!r}.{did_you_mean(uid, self.experts)} "
                f"Experts: {', '.join(self.experts)}."
            )


def write_folder(
    work: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    router: SampleRouter | None,
    record: Record,
) -> None:
    """Write all files of a composed adapter.

    Args:
        work: An empty folder.
        config: Content of ``adapter_config.json``.
        tensors: Of ``adapter_model.safetensors``.
        router: The router with its statistics.
        record: What they come from.
    """
    write_json(work / CONFIG_FILE, config)
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    save_file(plain, work / WEIGHTS_FILE, {"format": "pt"})
    state: dict[str, Tensor] = {}
    if router is not None:
        state = {name: tensor.contiguous().clone() for name, tensor in router.state().items()}
        save_file(state, work / ROUTER_FILE)
    record.format_version = FORMAT_VERSION if any(name.endswith("/classes") for name in state) else 1
    write_json(work / COMPOSE_FILE, vars(record))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], SampleRouter | None, Record]:
    """Read what `write_folder` wrote.

    Raises:
        UserError: If the folder is no composed adapter, damaged, or of a newer format.
    """
    path = folder / COMPOSE_FILE
    settle(folder)
    if not path.is_file():
        raise UserError(f"{folder} is no composed adapter: it has no {COMPOSE_FILE}; make one first.")
    with foreign(folder, "a composed adapter", "compose it again"):
        values = read_json(path, "the record of a composed adapter")
        if values["format_version"] > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer moe-adapt; upgrade it.")
        record = Record(**values)
        config = read_json(folder / CONFIG_FILE, "the configuration of an adapter")
        router = read_router(record, folder)
    return config, read_tensors(folder), router, record


def read_router(record: Record, folder: Path) -> SampleRouter | None:
    """Return what reads whole samples of a composed adapter, with its statistics; None if nothing does."""
    tokens = TokenRouter.of(record.router)
    if tokens is not None:
        router = tokens.prompts()
    else:
        router = None if record.router is None else SAMPLE_ROUTERS.build(record.router)
    if router is None:
        return None
    router.load(read_tensors_of(folder / ROUTER_FILE, "the statistics of a router"))
    return router
