"""``moe-adapt list``: packaged configurations, method presets, learners, components, one line each."""

import inspect
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.registry import Registry
from moe_adapt.runs.config_names import first_line, packaged_configs

__all__ = ["SECTIONS", "show"]

SECTIONS = ("configs", "methods", "learners", "scorers", "modifiers", "selectors", "losses")


def show(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``list``.

    Raises:
        UserError: For a mistake in the arguments.
    """
    parser = CommandParser(
        "list", "List packaged configurations, method presets, learners and routing components."
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"what to list: {', '.join(SECTIONS)}")
    wanted = parser.parse(argv).sections
    for section in wanted:
        if section not in SECTIONS:
            parser.error(f"there is no section {section!r}; sections: {', '.join(SECTIONS)}")
    console = Console()
    for section in wanted or SECTIONS:
        console.print(_table(section, _entries(section)))


def _entries(section: str) -> dict[str, str]:
    if section == "configs":
        return {name: first_line(path) for name, path in packaged_configs().items()}
    if section == "methods":
        from moe_adapt.presets import PRESETS

        return {name: _preset(preset) for name, preset in PRESETS.items()}
    if section == "learners":
        from moe_adapt.learners import LEARNERS

        return {LEARNERS.get(name).__name__: first for name, first in _documented(LEARNERS).items()}
    import moe_adapt.routing as routing

    registries: dict[str, Registry] = {
        "scorers": routing.SCORERS,
        "modifiers": routing.MODIFIERS,
        "selectors": routing.SELECTORS,
        "losses": routing.AUX_LOSSES,
    }
    return _documented(registries[section])


def _documented(registry: Registry) -> dict[str, str]:
    return {name: (inspect.getdoc(registry.get(name)) or "").split("\n")[0] for name in registry}


def _preset(preset: Mapping[str, object]) -> str:
    losses = preset["aux_losses"]
    assert isinstance(losses, list)
    parts = [
        f"{preset['num_experts']} experts of rank {preset['r']}",
        f"selector {_spec(preset['selector'])}",
    ]
    return ", ".join(parts + [f"loss {_spec(loss)}" for loss in losses])


def _spec(spec: object) -> str:
    if not isinstance(spec, Mapping):
        return str(spec)
    options = ", ".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else str(spec["name"])


def _table(title: str, entries: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, expand=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what")
    for name, what in entries.items():
        table.add_row(name, what)
    return table
