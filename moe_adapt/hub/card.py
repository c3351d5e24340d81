"""The model card (README.md) of an exported adapter: metadata for the Hub and the text that a reader needs.

Everything in it comes from the adapter itself, from the run's manifest and from the metrics that are passed
in. The metadata never holds a path of the machine that trained the adapter: a base model in a local folder is
named in the text by the folder's name only.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor

from moe_adapt.tuner.peft_plugin import PREFIX

__all__ = ["hub_id", "make_card"]

TAGS = ["moe-adapt", "mixture-of-experts", "lora", "routed-lora"]

_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}

#: Names of metrics on the Hub, where they differ from ours.
_METRICS = {"acc": "accuracy", "acc_norm": "accuracy"}

_TEXT = """\
# {title}

A mixture of LoRA experts with a learned router for every token and layer, trained with moe-adapt (method
`{method}`) on {base}.

## Experts

{sites}

Routing: scorer `{scorer}`, selector `{selector}`{modifiers}. Auxiliary losses: {losses}.

{parameters}

## How to load

```bash
pip install moe-adapt
```

```python
import moe_adapt.tuner  # teaches PEFT the adapter type ROUTED_LORA
from peft import PeftModel

{load_code}
model = PeftModel.from_pretrained(base, "PATH_OR_ID_OF_THIS_ADAPTER")
```

`moe_adapt.hub.load.load_adapter(base, path)` does the same and also checks that every tensor of the file
arrived. Without the package, PEFT stops with `KeyError: 'ROUTED_LORA'`.

## Results

{results}

## Limits

* The router decides anew for every token, so the experts cannot be merged into the base weights (a single
  expert or constant gates could be).
* The adapter fits only the base model that it was trained on.
* The numbers above hold for the data they were measured on; they say nothing about other data, and nobody has
  checked this adapter for bias or safety.

## Where it comes from

{provenance}
"""


def hub_id(name: str | None) -> str | None:
    """Return `name` if it can be the id of a model on the Hub; None for folders, timm's and empty names.

    >>> hub_id("sentence-transformers/all-MiniLM-L6-v2"), hub_id("/models/mini"), hub_id("")
    ('sentence-transformers/all-MiniLM-L6-v2', None, None)
    """
    if not name or not re.fullmatch(r"[\w.-]*\w[\w.-]*(/[\w.-]*\w[\w.-]*)?", name):
        return None
    return None if Path(name).exists() or timm.is_model(name) else name


def make_card(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    title: str,
    base_model: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
    metrics: Mapping[str, float] | None = None,
    manifest: Mapping[str, Any] | None = None,
    load_code: str | None = None,
) -> ModelCard:
    """Write the card of one adapter.

    Args:
        config: The adapter's configuration, as in ``adapter_config.json``.
        tensors: The adapter's tensors.
        title: Heading, and the model's name in the metadata.
        base_model: Id or folder of the base model; None takes the configuration's.
        task: Task in the Hub's words, such as text-classification; None derives it from the configuration.
        dataset: What the metrics were measured on.
        metrics: Names and values.
        manifest: The run's manifest: command, seed, versions and so on.
        load_code: Python that builds the base model as `base`.
    """
    base_model = base_model or config.get("base_model_name_or_path")
    identifier = hub_id(base_model)
    task = task or _TASKS.get(config.get("task_type") or "")
    data = ModelCardData(
        library_name="peft",
        base_model=identifier,
        base_model_relation="adapter" if identifier else None,
        tags=TAGS + [f"base_model:adapter:{identifier}"] * bool(identifier),
        pipeline_tag=task,
        model_name=title,
        eval_results=_eval_results(task, dataset, metrics),
        metrics=sorted({_metric_type(name) for name in metrics}) if metrics else None,
    )
    text = _TEXT.format(
        title=title,
        method=config["method"],
        base=_describe_base(base_model, identifier),
        sites=_site_table(config.get("sites") or {}),
        scorer=_component(config["scorer"]),
        selector=_component(config["selector"]),
        modifiers="".join(f", modifier `{_component(spec)}`" for spec in config.get("modifiers") or ()),
        losses=", ".join(f"`{_component(spec)}`" for spec in config.get("aux_losses") or ()) or "none",
        parameters=_parameter_table(tensors),
        load_code=load_code or _load_code(identifier, config.get("task_type")),
        results=_results(dataset, metrics),
        provenance=_provenance(manifest),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _describe_base(name: str | None, identifier: str | None) -> str:
    if identifier:
        return f"[{identifier}](https://huggingface.co/{identifier})"
    if name and timm.is_model(name):
        return f"timm's `{name}`"
    if name:
        return f"a base model in a local folder named `{Path(name).name}`"
    return "a base model that was built in code"


def _site_table(sites: Mapping[str, Mapping[str, Any]]) -> str:
    values = ("num_experts", "r", "alpha")
    counts = Counter(
        (re.sub(r"^.*\.\d+\.", "", path), *(site.get(name) for name in values))
        for path, site in sites.items()
    )
    rows = [(f"`{name}`", count, *numbers) for (name, *numbers), count in counts.items()]
    return _table(("layer", "count", "experts each", "rank", "alpha"), rows)


def _parameter_table(tensors: Mapping[str, Tensor]) -> str:
    groups = {"router": 0, "experts": 0, "other modules (such as a head)": 0}
    for name, tensor in tensors.items():
        if f"{PREFIX}router__" in name:
            groups["router"] += tensor.numel()
        elif PREFIX in name:
            groups["experts"] += tensor.numel()
        else:
            groups["other modules (such as a head)"] += tensor.numel()
    rows = [(name, f"{count:,}") for name, count in groups.items()]
    return _table(("stored values", "count"), [*rows, ("total", f"{sum(groups.values()):,}")])


def _component(spec: str | Mapping[str, Any]) -> str:
    if isinstance(spec, str):
        return spec
    options = ", ".join(f"{key}={value!r}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else str(spec["name"])


def _load_code(identifier: str | None, task_type: str | None) -> str:
    classes = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}
    if identifier and task_type in classes:
        name = classes[task_type]
        return f'from transformers import {name}\n\nbase = {name}.from_pretrained("{identifier}")'
    return "base = ...  # the base model, built as for training"


def _metric_type(name: str) -> str:
    kind = name.rsplit("/", 1)[-1]
    return _METRICS.get(kind, kind)


def _eval_results(
    task: str | None, dataset: str | None, metrics: Mapping[str, float] | None
) -> list[EvalResult] | None:
    if not (task and dataset and metrics):
        return None
    return [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w./-]+", "-", dataset).lower(),
            dataset_name=dataset,
            metric_type=_metric_type(name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in sorted(metrics.items())
    ]


def _results(dataset: str | None, metrics: Mapping[str, float] | None) -> str:
    if not metrics:
        return "None were given when the adapter was exported."
    rows = [(f"`{name}`", f"{value:.4g}") for name, value in sorted(metrics.items())]
    return (f"Measured on {dataset}.\n\n" if dataset else "") + _table(("metric", "value"), rows)


def _provenance(manifest: Mapping[str, Any] | None) -> str:
    if not manifest:
        return "No run manifest was given when the adapter was exported."
    parts = []
    if command := manifest.get("command"):
        parts.append(f"```bash\n{command}\n```")
    if (seed := manifest.get("seed")) is not None:
        parts.append(f"Seed {seed}.")
    if versions := manifest.get("versions"):
        parts.append(_table(("package", "version"), sorted(versions.items())))
    return "\n\n".join([*parts, "The whole manifest is in `manifest.json`."])
