"""``moe-adapt list NAME``: everything of that name, with its paper and its options."""

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moe_adapt.cli.options import constructor_options
from moe_adapt.registry import Registry
from moe_adapt.runs.config_names import first_line, packaged_configs

__all__ = ["REGISTRIES", "described", "registry_of"]

#: Arguments that the router or the runner supplies.
SUPPLIED = ("in_features", "num_experts", "backbone")
#: Keys of a method that name parts, and the parts' section.
PARTS = {
    "scorer": "scorers",
    "modifiers": "modifiers",
    "selector": "selectors",
    "bank": "banks",
    "aux_losses": "losses",
}


#: Section of ``moe-adapt list`` -> where its registry is, as ``module:name``; imported when it is needed.
REGISTRIES = {
    "learners": "moe_adapt.learners:LEARNERS",
    "scorers": "moe_adapt.routing:SCORERS",
    "modifiers": "moe_adapt.routing:MODIFIERS",
    "selectors": "moe_adapt.routing:SELECTORS",
    "banks": "moe_adapt.experts:BANKS",
    "losses": "moe_adapt.routing:AUX_LOSSES",
    "rules": "moe_adapt.optim:ROUTER_UPDATES",
    "procedures": "moe_adapt.training.procedures:PROCEDURES",
}


def registry_of(section: str) -> Registry:
    """Return the registry of a section.

    Args:
        section: A key of `REGISTRIES`.
    """
    module, name = REGISTRIES[section].split(":")
    return getattr(import_module(module), name)


def described(name: str) -> list[RenderableType]:
    """Return what goes by a name: configurations by full or last name, and registered parts.

    Args:
        name: Such as ``routed_lora/dynmole``, ``dynmole``, ``load_balance``, or a learner's class.
    """
    found: list[RenderableType] = [
        _configuration(config) for config in packaged_configs() if name in (config, config.rpartition("/")[2])
    ]
    for section in REGISTRIES:
        registry = registry_of(section)
        for registered in registry:
            if name == registered or (section == "learners" and name == registry.get(registered).__name__):
                found.append(_part(registry, registered))
    return found


def _configuration(name: str) -> RenderableType:
    path = packaged_configs()[name]
    lines = [Text(f"configuration {name}", style="bold"), Text(first_line(path))]
    for section, part in _parts_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
        registry = registry_of(section)
        lines.append(Text(f"  {registry.kind} {part}: {registry.reference(part)}"))
    return Group(*lines, Text(f"  file: {path}"), Text())


def _parts_of(content: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield the section and the name of every part of a routed method in a configuration."""
    tuner = ((content or {}).get("model") or {}).get("init_args", {}).get("tuner") or {}
    for key, section in PARTS.items():
        specs = tuner.get(key) or []
        for spec in specs if isinstance(specs, list) else [specs]:
            yield section, spec["name"] if isinstance(spec, Mapping) else spec


def _part(registry: Registry, name: str) -> RenderableType:
    cls = registry.get(name)
    table = Table(show_header=True, header_style="", expand=False)
    table.add_column("option", style="bold", no_wrap=True)
    table.add_column("default")
    table.add_column("meaning")
    options = [option for option in constructor_options(cls) if option.name not in SUPPLIED]
    for option in options:
        table.add_row(*(Text(cell) for cell in option))
    return Group(
        Text(f"{registry.kind} {name}", style="bold"),
        Text((inspect.getdoc(cls) or "").split("\n")[0]),
        Text(f"  reference: {registry.reference(name) or 'not given'}"),
        Text(f"  in Python: {cls.__module__}.{cls.__name__}"),
        *([table] if options else []),
        Text(),
    )
