"""A pool on disk: where its adapters are, what they are good at, their gates. JSON and safetensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.files import settle
from moe_adapt.hub.folder import new_folder, write_json
from moe_adapt.hub.pool.router import AdapterRouter, Plan, PrototypeRouter, StatisticsRouter
from moe_adapt.reading import foreign, read_json, read_tensors

__all__ = ["POOL_FILE", "AdapterPool", "Member"]

POOL_FILE = "pool.json"
TENSORS = "pool.safetensors"
#: Pools of prototypes have version 1, which older releases read; those with classes of adapters 3, others 2.
FORMAT_VERSION = 3


@dataclass
class Member:
    """One adapter of a pool.

    Attributes:
        source: Its folder, or name on the Hub with an optional ``@revision``.
        examples: How many examples its centroids are made of.
        note: What it is for.
        gates: Gate vectors [d] by layer, if they were trained (`moe_adapt.hub.pool.gates`).
    """

    source: str
    examples: int
    note: str = ""
    gates: dict[str, Tensor] = field(default_factory=dict)


class AdapterPool:
    """Published adapters, and a router over them.

    Args:
        encoder: Name or folder of the model that embeds texts for the router.
        centroids: Centroids per adapter.
        router: ``prototype``, or the short name of a router over samples, such as ``lda``.
        block: After how many blocks of the model texts are embedded; None takes its final embedding.

    Attributes:
        members: The adapters by name.
        router: Chooses among them.
    """

    def __init__(
        self, encoder: str, centroids: int = 1, router: str = "prototype", block: int | None = None
    ) -> None:
        self.encoder, self.block = encoder, block
        self.router: AdapterRouter = (
            PrototypeRouter(centroids) if router == "prototype" else StatisticsRouter(router)
        )
        self.members: dict[str, Member] = {}

    def add(
        self,
        uid: str,
        source: str,
        examples: Tensor,
        note: str = "",
        gates: Mapping[str, Tensor] | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> None:
        """Add an adapter; no other's scores change.

        Args:
            uid: Its name.
            source: Its folder or name on the Hub.
            examples: Embeddings of what it is good at, [M, d].
            note: What it is for.
            gates: Gate vectors by layer.
            labels: Class of each example, for ``lda``.

        Raises:
            UserError: If the name is taken or cannot be used, or there are no examples.
        """
        if not uid or "/" in uid:
            raise UserError(f"an adapter's name in a pool is not empty and has no slash, got {uid!r}.")
        self.router.add(uid, examples, labels)
        self.members[uid] = Member(source, len(examples), note, dict(gates or {}))

    def remove(self, uid: str) -> None:
        """Remove an adapter; no other's scores change.

        Raises:
            UserError: If there is none of that name.
        """
        self.router.remove(uid)
        del self.members[uid]

    def route(self, embeddings: Tensor) -> Plan:
        """Return which adapters suit the embeddings of queries, [Q, d]."""
        return self.router.route(embeddings)

    def save(self, folder: str | Path) -> None:
        """Write the pool, in the place of an earlier one.

        Raises:
            UserError: If the folder holds something else, or the disk is full.
        """
        content: dict[str, Any] = {"format_version": 1, "encoder": self.encoder, "order": list(self.members)}
        if isinstance(self.router, PrototypeRouter):
            tensors = {f"prototypes/{uid}": means for uid, means in self.router.prototypes.items()}
            content["centroids"] = self.router.count
        else:
            assert isinstance(self.router, StatisticsRouter)
            tensors = {f"router/{name}": part for name, part in self.router.statistics.state().items()}
            classes = any(name.endswith("/classes") for name in tensors)
            content |= {"format_version": FORMAT_VERSION if classes else 2, "router": self.router.name}
        if self.block is not None:
            content |= {"format_version": max(2, content["format_version"]), "block": self.block}
        for uid, member in self.members.items():
            tensors |= {f"gates/{uid}/{site}": gate for site, gate in member.gates.items()}
        content["members"] = {
            uid: {"source": member.source, "examples": member.examples, "note": member.note}
            for uid, member in self.members.items()
        }
        with new_folder(Path(folder), overwrite=True) as work:
            write_json(work / POOL_FILE, content)
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, work / TENSORS)

    @classmethod
    def load(cls, folder: str | Path) -> "AdapterPool":
        """Read a pool.

        Args:
            folder: Its folder.

        Raises:
            UserError: If it is no pool, damaged, or of a newer format.
        """
        path = Path(folder) / POOL_FILE
        settle(Path(folder))
        if not path.is_file():
            raise UserError(
                f"{folder} is no pool: it has no {POOL_FILE}; make one with `moe-adapt pool add`."
            )
        with foreign(folder, "a pool", "make it again"):
            content = read_json(path, "a pool", "make it again")
            if content["format_version"] > FORMAT_VERSION:
                raise UserError(f"{path} was written by a newer moe-adapt; upgrade it.")
            return cls._read(content, read_tensors(path.with_name(TENSORS), "the centroids of a pool"))

    @classmethod
    def _read(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "AdapterPool":
        block = content.get("block")
        pool = cls(
            str(content["encoder"]),
            content.get("centroids", 1),
            str(content.get("router", "prototype")),
            None if block is None else int(block),
        )
        for uid in content["order"]:
            stored = content["members"][uid]
            gates = {
                name.removeprefix(f"gates/{uid}/"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"gates/{uid}/")
            }
            pool.members[uid] = Member(
                str(stored["source"]), int(stored["examples"]), str(stored["note"]), gates
            )
        used = set(tensors) - _statistics(pool, tensors)
        if set(content["order"]) != set(content["members"]) or any(
            name.split("/")[0] != "gates" or name.split("/")[1] not in pool.members for name in used
        ):
            raise ValueError("its members and its tensors are not the same adapters")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("a centroid or gate is not finite")
        if not all(gate.ndim == 1 for member in pool.members.values() for gate in member.gates.values()):
            raise ValueError("a gate is no vector")
        return pool


def _statistics(pool: AdapterPool, tensors: Mapping[str, Tensor]) -> set[str]:
    """Give a pool's router its statistics; return the names of the tensors that hold them."""
    if isinstance(pool.router, PrototypeRouter):
        names = {f"prototypes/{uid}" for uid in pool.members}
        pool.router.prototypes = {uid: tensors[f"prototypes/{uid}"] for uid in pool.members}
        shapes = {tuple(means.shape) for means in pool.router.prototypes.values()}
        if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({shape[-1] for shape in shapes}) > 1:
            raise ValueError(f"its centroids have the shapes {sorted(shapes)}")
        return names
    assert isinstance(pool.router, StatisticsRouter)
    names = {name for name in tensors if name.startswith("router/")}
    pool.router.statistics.load({name.removeprefix("router/"): tensors[name] for name in sorted(names)})
    if pool.router.statistics.uids != sorted(pool.members):
        raise ValueError("its router knows other adapters")
    return names
