"""Pages of the rules for router updates."""

import inspect
from collections.abc import Iterator

from docstrings import class_text, first_sentence, module_text, options_table
from page import INSTRUCTIONS, LANGUAGE_MODEL, MethodPage, evidence, linked_papers, module_file, shell

from moe_adapt.optim import ROUTER_UPDATES

__all__ = ["HEADS", "LEAD", "update_rules"]

HEADS = ("paper",)
LEAD = """What of an update of the routers is let through: the option `router_update` of
[SAME](#continual-learners). [The idea, with a picture](concepts/updates.md)."""

USE = """```yaml
learner:
  class_path: SAME
  init_args:
    router_update: {{name: {name}}}
```

In a loop of your own `moe_adapt.optim.UpdateHook` applies a rule to any parameter
([reference](../../api/optim.md), [picture](../../concepts/updates.md))."""


def update_rules() -> Iterator[MethodPage]:
    """Yield a page per registered rule."""
    for name in ROUTER_UPDATES:
        cls = ROUTER_UPDATES.get(name)
        command = shell(
            "moe-adapt stream --config stream/instructions --config learner/same_strict",
            f"--stream.folder {INSTRUCTIONS} --backbone.backbone {LANGUAGE_MODEL} --out runs/{name}",
            f'--learner.router_update \'{{"name": "{name}"}}\'',
        )
        parts = (
            "## Use it",
            command,
            USE.format(name=name),
            "## How it works",
            class_text(cls).partition("\n\n")[2],
            module_text(cls),
            "## Options",
            options_table(cls) or "None.",
            *evidence("rule", {name}),
        )
        summary = first_sentence(inspect.getdoc(cls) or "").rstrip(".")
        yield MethodPage(
            "rule", name, summary, (linked_papers(ROUTER_UPDATES.reference(name)),), parts, module_file(cls)
        )
