"""``moe-adapt list``: packaged configurations, method presets, learners, components, one line each.

``moe-adapt list NAME`` shows one of them with its paper and options (`moe_adapt.cli.described`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.catalogue import catalogue
from moe_adapt.cli.described import REGISTRIES, described
from moe_adapt.runs.config_names import first_line, packaged_configs

__all__ = ["SECTIONS", "show"]

SECTIONS = (
    "configs",
    "methods",
    "learners",
    "scorers",
    "modifiers",
    "selectors",
    "banks",
    "losses",
    "rules",
    "procedures",
)


def show(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``list``.

    Raises:
        UserError: For a mistake in the arguments.
    """
    parser = CommandParser(
        "list", "List packaged configurations, method presets, learners and parts of routed methods."
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="SECTION|NAME",
        help=f"a section ({', '.join(SECTIONS)}), or a name to show with its paper and its options",
    )
    wanted = parser.parse(argv).what
    shown = {word: described(word) for word in wanted if word not in SECTIONS}
    for word, found in shown.items():
        if not found:
            parser.error(
                f"there is no section, configuration or part {word!r}; sections: {', '.join(SECTIONS)}; "
                "`moe-adapt list` shows every name"
            )
    console = Console()
    for word in wanted or SECTIONS:
        for part in shown.get(word) or [_table(word, _entries(word))]:
            console.print(part)


def _entries(section: str) -> dict[str, str]:
    if section == "configs":
        return {name: first_line(path) for name, path in packaged_configs().items()}
    if section == "methods":
        return {
            name.removeprefix("routed_lora/"): _preset(yaml.safe_load(path.read_text(encoding="utf-8")))
            for name, path in packaged_configs().items()
            if name.startswith("routed_lora/")
        }
    return catalogue(REGISTRIES[section], by_class=section == "learners")


def _preset(configuration: Mapping[str, Any]) -> str:
    preset = configuration["model"]["init_args"]["tuner"]
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
