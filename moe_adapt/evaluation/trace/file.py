"""A routing trace as one safetensors file: tensors, and a JSON description in the file's metadata.

Nothing is pickled. The file is written beside its final name and renamed, so there is never half a trace.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace, TokenTable
from moe_adapt.files import write_file
from moe_adapt.reading import foreign, read_tensors, tensor_shapes

__all__ = ["FORMAT_VERSION", "TRACE_FILE", "load_trace", "save_trace"]

FORMAT_VERSION = 1

#: Name of the trace in a folder.
TRACE_FILE = "trace.safetensors"

_KEY = "moe_adapt_routing_trace"


def save_trace(trace: RoutingTrace, path: str | Path) -> Path:
    """Write a trace.

    Args:
        trace: The trace.
        path: The file, ending in ``.safetensors``, or a folder, which then gets a ``trace.safetensors``.

    Returns:
        The file.
    """
    target = _trace_path(Path(path))
    tensors: dict[str, Tensor | None] = {"samples": trace.samples, "groups": trace.groups}
    for number, table in enumerate(trace.tables):
        tensors |= {f"tables.{number}.{name}": getattr(table, name) for name in _TABLE_TENSORS}
    for number, site in enumerate(trace.sites.values()):
        tensors |= {f"sites.{number}.{name}": getattr(site, name) for name in _SITE_TENSORS}
    description = {
        "format_version": FORMAT_VERSION,
        "tables": len(trace.tables),
        "sites": [
            {
                "name": name,
                "num_experts": site.num_experts,
                "nulls": site.nulls,
                "table": site.table,
                "origins": site.origins,
            }
            for name, site in trace.sites.items()
        ],
        "group_names": list(trace.group_names),
        "meta": dict(trace.meta),
    }
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    write_file(target, save(kept, metadata={_KEY: json.dumps(description)}))
    return target


_TABLE_TENSORS = ("sample", "position", "ids")
_SITE_TENSORS = ("packed", "weights", "first", "probs")


def load_trace(path: str | Path) -> RoutingTrace:
    """Read a trace.

    Args:
        path: The file, or the folder that holds a ``trace.safetensors``.

    Raises:
        UserError: If there is no such file, it is no trace, damaged, or of a later version.
    """
    file = _trace_path(Path(path))
    if not file.is_file():
        raise UserError(f"there is no routing trace {file}; `moe-adapt trace RUN --to DIR` writes one.")
    text = tensor_shapes(file, "a routing trace")[1].get(_KEY)
    if text is None:
        raise UserError(f"{file} holds tensors but no routing trace; record one with `moe-adapt trace`.")
    with foreign(file, "a routing trace", "record it again"):
        description = json.loads(text)
        version = description.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{file} has format version {version}, this moe_adapt reads {FORMAT_VERSION}; "
                "use the version that wrote it, or record the trace again."
            )
        return _build(description, read_tensors(file, "a routing trace"))


def _build(description: dict[str, Any], tensors: dict[str, Tensor]) -> RoutingTrace:
    tables = [
        TokenTable(
            sample=tensors[f"tables.{number}.sample"],
            position=tensors[f"tables.{number}.position"],
            ids=tensors.get(f"tables.{number}.ids"),
        )
        for number in range(description["tables"])
    ]
    sites = {
        entry["name"]: SiteTrace(
            num_experts=entry["num_experts"],
            table=entry["table"],
            nulls=entry["nulls"],
            origins=entry.get("origins"),
            packed=tensors[f"sites.{number}.packed"],
            weights=tensors[f"sites.{number}.weights"],
            first=tensors[f"sites.{number}.first"],
            probs=tensors.get(f"sites.{number}.probs"),
        )
        for number, entry in enumerate(description["sites"])
    }
    return RoutingTrace(
        sites=sites,
        tables=tables,
        samples=tensors["samples"],
        groups=tensors.get("groups"),
        group_names=description["group_names"],
        meta=description["meta"],
    )


def _trace_path(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path / TRACE_FILE
