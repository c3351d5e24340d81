"""Pages of the continual learners."""

import inspect
from collections.abc import Iterator
from functools import cache

import yaml
from docstrings import (
    class_text,
    first_sentence,
    link_papers,
    module_text,
    named_modules,
    option_names,
    options_table,
)
from page import (
    INSTRUCTIONS,
    LANGUAGE_MODEL,
    MethodPage,
    configuration,
    evidence,
    linked_papers,
    module_file,
    shell,
)

from moe_adapt.checks import ToyEncoder
from moe_adapt.learners import LEARNERS, Learner
from moe_adapt.learners.closed_form import ClosedForm
from moe_adapt.runs.config_names import first_line, packaged_configs

__all__ = ["HEADS", "LEAD", "continual_learners"]

HEADS = ("configurations", "keeps samples", "paper")
LEAD = "A `learner` of `moe-adapt stream`; [how streams run](streams.md)."
#: Options that say how many samples a learner keeps.
KEEPING = {"capacity", "per_task"}


@cache
def _classes() -> dict[str, str]:
    """Return name of a learner's configuration -> name of its class."""
    paths = {name: path for name, path in packaged_configs().items() if name.startswith("learner/")}
    loaded = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    return {name: content["learner"]["class_path"].rsplit(".", 1)[-1] for name, content in loaded.items()}


def _configs(cls: type[Learner]) -> list[str]:
    """Return the names of a learner's configurations, the plain one first."""
    found = [name for name, class_name in _classes().items() if class_name == cls.__name__]
    plain = f"learner/{cls.registered_name}"  # type: ignore[attr-defined]
    return sorted(found, key=lambda name: (name != plain, name))


def _command(config: str) -> str:
    """Return the command: on the stream of the demo, or on instructions if the configuration is for them."""
    out = f"--out runs/{config.removeprefix('learner/')}"
    if "# with: stream/instructions" not in packaged_configs()[config].read_text(encoding="utf-8"):
        return shell(f"moe-adapt stream --config stream/demo --config {config} {out}")
    return shell(
        f"moe-adapt stream --config stream/instructions --config {config} --stream.folder {INSTRUCTIONS}",
        f"--backbone.backbone {LANGUAGE_MODEL} {out}",
    )


def _use(configs: list[str]) -> Iterator[str]:
    if configs:
        yield "## Use it"
    for config in configs:
        yield f"`{config}`: {link_papers(first_line(packaged_configs()[config]))}."
        yield _command(config)
        yield configuration(config)


def _explained(cls: type[Learner]) -> Iterator[str]:
    yield "## How it works"
    yield module_text(cls)
    yield class_text(cls).partition("\n\n")[2]
    for name, text in named_modules(module_text(cls)).items():
        yield f"### {name.rsplit('.', 1)[-1].replace('_', ' ').capitalize()}"
        yield text
    if issubclass(cls, ClosedForm):
        head = type(cls(ToyEncoder()).head)  # type: ignore[call-arg]
        yield f"### The head: {head.__name__}"
        yield module_text(head)


def continual_learners() -> Iterator[MethodPage]:
    """Yield a page per registered learner."""
    for registered in LEARNERS:
        cls = LEARNERS.get(registered)
        configs = _configs(cls)
        summary = first_sentence(inspect.getdoc(cls) or "").rstrip(".")
        names = {registered, cls.__name__, *(config.removeprefix("learner/") for config in configs)}
        parts = [*_explained(cls), *_use(configs), "## Options", options_table(cls)]
        described = [summary, *(first_line(packaged_configs()[config]) for config in configs)]
        facts = (
            ", ".join(f"`{config}`" for config in configs),
            "yes" if KEEPING & set(option_names(cls)) else "no",
            linked_papers(" ".join([LEARNERS.reference(registered), *described])),
        )
        parts += evidence("learner", names)
        yield MethodPage("learner", cls.__name__, summary, facts, tuple(parts), module_file(cls))
