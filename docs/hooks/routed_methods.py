"""Pages of the routed LoRA methods: the presets and the parts that they are made of."""

from collections.abc import Iterator
from typing import Any

import yaml
from page import LANGUAGE_MODEL, MethodPage, configuration, evidence, linked_papers, part, shell

from moe_adapt import experts, routing
from moe_adapt.runs.config_names import first_line, packaged_configs
from moe_adapt.training import procedures
from moe_adapt.tuner.methods import METHODS

__all__ = ["HEADS", "LEAD", "routed_methods"]

HEADS = ("experts × rank", "scorer", "selector", "auxiliary losses", "paper")
LEAD = """A preset of `RoutedLoraConfig(method=...)` and a configuration `routed_lora/NAME`. Their parts, one
by one, and how to combine them: [Parts of a router](routing.md)."""

PYTHON = """Text and image classifiers take another `task/` ([configurations](../../configuration.md)). In
Python ([how to train it](../../python_api.md)):

```python
from moe_adapt.tuner import RoutedLoraConfig

config = RoutedLoraConfig(method="{name}")
```

The whole preset; every key is an option, such as `--model.tuner.num_experts 4`:"""
PIPELINE = """Per token and adapted layer the scorer gives logits, modifiers change them, the selector makes
gates $g$, and $y = W x + s \\sum_e g_e B_e A_e x$, unless experts are of another kind
([picture](../../concepts/routing.md))."""

#: Key of a preset -> what one of its components is called, and the registry of these components.
COMPONENTS = {
    "scorer": ("Scorer", routing.SCORERS),
    "modifiers": ("Modifier", routing.MODIFIERS),
    "selector": ("Selector", routing.SELECTORS),
    "bank": ("Experts", experts.BANKS),
    "aux_losses": ("Loss", routing.AUX_LOSSES),
}
#: Arguments that the router supplies.
SUPPLIED = ("num_experts", "in_features")


def _options(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "name"}


def _parts(preset: dict[str, Any]) -> Iterator[str]:
    for key, (title, registry) in COMPONENTS.items():
        value = preset[key]
        for spec in value if isinstance(value, list) else [value]:
            spec = {"name": spec} if isinstance(spec, str) else spec
            name = spec["name"]
            if name == "lora":
                continue
            yield from part(f"{title}: {name}", registry.get(name), _options(spec), SUPPLIED)


def _procedure(config: str) -> Iterator[str]:
    """Yield how the method is trained, if not of one pass."""
    content = yaml.safe_load(packaged_configs()[config].read_text(encoding="utf-8"))
    spec = content["model"]["init_args"].get("procedure")
    if spec is not None:
        cls = getattr(procedures, spec["class_path"])
        yield from part(f"Procedure: {cls.registered_name}", cls, spec.get("init_args") or {})


def _facts(preset: dict[str, Any]) -> Iterator[str]:
    yield f"{preset['num_experts']} × {preset['r']}"
    yield preset["scorer"]["name"]
    options = ", ".join(f"{key}={value}" for key, value in _options(preset["selector"]).items())
    yield preset["selector"]["name"] + (f" ({options})" if options else "")
    yield ", ".join(spec["name"] for spec in preset["aux_losses"]) or "none"


def routed_methods() -> Iterator[MethodPage]:
    """Yield a page per preset."""
    for name, preset in METHODS.items():
        config = f"routed_lora/{name}"
        summary = first_line(packaged_configs()[config])
        command = shell(
            f"moe-adapt fit --config base --config task/causal_lm --config {config}",
            f"--model.backbone {LANGUAGE_MODEL} --data.train data/train.jsonl",
        )
        use = ["## Use it", command, PYTHON.format(name=name), configuration(config)]
        parts = [
            *use,
            "## How it works",
            PIPELINE,
            *_parts(preset),
            *_procedure(config),
            *evidence("routed", {name}),
        ]
        facts = (*_facts(preset), linked_papers(summary))
        yield MethodPage("routed", name, summary, facts, tuple(parts), f"configs/{config}.yaml")
