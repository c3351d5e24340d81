"""Pages of our learners of drift streams; River's own are documented there."""

import inspect
from collections.abc import Iterator

from committed import drift_results
from docstrings import first_sentence, module_text, options_table
from page import MethodPage, evidence, linked_papers, module_file, shell

from moe_adapt.drift.comparison.baselines import BASELINES
from moe_adapt.drift.comparison.methods import METHODS
from moe_adapt.drift.streams import synthetic_stream

__all__ = ["HEADS", "LEAD", "drift_learners"]

HEADS = ("paper",)
LEAD = "A `method` in a recipe of `moe-adapt drift`, beside River's own learners; [how](drift.md)."

USE = """```yaml
# {name}_recipe.yaml
title: {cls}
seeds: [1]
streams:
  - {{name: SEA_a, rows: 2000}}
methods:
  - hoeffding_tree
  - {name}
```

{command}

It is a River classifier:

```python
from {module} import {cls}

model = {cls}()
```"""


def drift_learners() -> Iterator[MethodPage]:
    """Yield a page per method of drift recipes that is ours."""
    for name in METHODS:
        if name in BASELINES:
            continue
        cls = type(METHODS[name](synthetic_stream("SEA_a", 200), 0))
        command = shell(f"moe-adapt drift --config {name}_recipe.yaml --out runs/{name}")
        package = cls.__module__.rsplit(".", 1)[0]
        results = drift_results(name)
        parts = (
            "## Use it",
            USE.format(name=name, cls=cls.__name__, command=command, module=package),
            "## How it works",
            module_text(cls),
            "## Options",
            options_table(cls),
            *evidence("drift", {name, cls.__name__}),
            *(["## Committed results", *results] if results else []),
        )
        summary = first_sentence(inspect.getdoc(cls) or "").rstrip(".")
        yield MethodPage(
            "drift", cls.__name__, summary, (linked_papers(module_text(cls)),), parts, module_file(cls)
        )
