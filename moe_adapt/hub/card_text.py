"""The sections of a model card as Markdown."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_adapt.hub.base_code import BaseCode, is_timm_model
from moe_adapt.tuner.peft_plugin import PREFIX

__all__ = [
    "describe_base",
    "expert_sections",
    "experts",
    "gap_section",
    "how_to_load",
    "introduction",
    "limits",
    "provenance",
    "results",
    "stream_section",
    "table",
]

_INTRODUCTIONS = {
    "adapter": "A mixture of LoRA experts with a learned router for every token and layer, trained with "
    "moe-adapt (method `{method}`) on {base}.",
    "experts": "The {count} experts of a routed mixture of LoRAs (moe-adapt, method `{method}`) on {base}, "
    "each as an ordinary LoRA. **The router that chose between them for every token is not part of "
    "this export.**",
    "merged": "One ordinary LoRA of rank {rank} on {base}, in the place of a routed mixture of LoRA experts "
    "(moe-adapt, method `{method}`): **{word}**, see below.",
    "full": "A whole model: {base}, with a routed mixture of LoRA experts (moe-adapt, method `{method}`) "
    "merged into its weights: **{word}**, see below. **The router is not part of it.**",
}

#: How to install the package while no release of it is on the index.
INSTALL = """\
The package is not on the index yet; in a clone of its repository:

```bash
pip install '.[train{extra}]'
```"""

_WITH_PACKAGE = """\
{install}

```python
import moe_adapt.tuner  # teaches PEFT the adapter type ROUTED_LORA
from peft import PeftModel

{code}
model = PeftModel.from_pretrained(base, "PATH_OR_ID_OF_THIS_ADAPTER")
```

`moe_adapt.hub.load.load_adapter(base, path_or_id)` does the same and also checks that every tensor of the
file arrived. Without the package, PEFT stops with `KeyError: 'ROUTED_LORA'`; `moe-adapt export --form merged`
and `--form experts` write adapters that need nothing but PEFT."""

_WITHOUT_PACKAGE = """\
With PEFT alone:

```python
from peft import PeftModel

{code}
model = PeftModel.from_pretrained(base, "PATH_OR_ID_OF_THIS_ADAPTER"{subfolder})
```"""

_WHOLE = """\
```python
from transformers import {names}

model = {auto}.from_pretrained("PATH_OR_ID_OF_THIS_MODEL"){tokenizer}
```"""

_WHOLE_TIMM = """\
```python
import timm

model = timm.create_model("local-dir:PATH_OF_THIS_MODEL", pretrained=True)  # or "hf-hub:ID_OF_THIS_MODEL"
```"""

_MEANS = "Every token gets the same mixture of the experts; what the router decided for each token is lost."
_BEFORE = "The results above were measured with the router; the gap is in the section before this one."
_LIMITS = {
    "adapter": [
        "The router decides anew for every token, so the experts cannot be merged into the base weights (a "
        "single expert or constant gates could be)."
    ],
    "experts": [
        "One expert alone is not what was trained: each was one part of a sum that a router weighted for "
        "every token. The results above were measured with the router."
    ],
    "merged": [_MEANS, _BEFORE],
    "full": [_MEANS, _BEFORE],
}

_FITS = "The adapter fits only the base model that it was trained on."
_HOLDS = "It holds the weights of the base model, so that the licence of the base holds for it too."
_COMMON_LIMITS = [
    "The numbers above hold for the data they were measured on; they say nothing about other data, and "
    "nobody has checked this adapter for bias or safety.",
]


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def describe_base(name: str | None, identifier: str | None) -> str:
    """Return words for a base model, without a path of this machine.

    Args:
        name: Name or folder of the base model.
        identifier: Its id on the Hub, if it has one.
    """
    if identifier:
        return f"[{identifier}](https://huggingface.co/{identifier})"
    if name and is_timm_model(name):
        return f"timm's `{name}`"
    if name:
        return f"a base model in a local folder named `{Path(name).name}`"
    return "a base model that was built in code"


def introduction(record: Mapping[str, Any], method: str, base: str) -> str:
    """Return the first paragraph.

    Args:
        record: What ``export.json`` holds.
        method: Name of the method.
        base: Words for the base model.
    """
    return _INTRODUCTIONS[record["form"]].format(
        method=method,
        base=base,
        count=len(record.get("experts", ())),
        rank=record.get("rank"),
        word=record["word"],
    )


def experts(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the tables of layers and sizes of the routed adapter, and its routing components."""
    modifiers = "".join(f", modifier `{_component(spec)}`" for spec in config.get("modifiers") or ())
    losses = ", ".join(f"`{_component(spec)}`" for spec in config.get("aux_losses") or ()) or "none"
    routing = (
        f"Routing: scorer `{_component(config['scorer'])}`, selector `{_component(config['selector'])}`"
        f"{modifiers}. Auxiliary losses: {losses}."
    )
    return "\n\n".join([_site_table(config.get("sites") or {}), routing, _parameter_table(tensors)])


def _site_table(sites: Mapping[str, Mapping[str, Any]]) -> str:
    values = ("num_experts", "r", "alpha")
    counts = Counter(
        (re.sub(r"^.*\.\d+\.", "", path), *(site.get(name) for name in values))
        for path, site in sites.items()
    )
    rows = [(f"`{name}`", count, *numbers) for (name, *numbers), count in counts.items()]
    return table(("layer", "count", "experts each", "rank", "alpha"), rows)


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
    return table(("trained values", "count"), [*rows, ("total", f"{sum(groups.values()):,}")])


def _component(spec: str | Mapping[str, Any]) -> str:
    if isinstance(spec, str):
        return spec
    options = ", ".join(f"{key}={value!r}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else str(spec["name"])


def how_to_load(record: Mapping[str, Any], code: BaseCode) -> str:
    """Return the section on loading.

    Args:
        record: What ``export.json`` holds.
        code: Builds the base model.
    """
    if record["form"] == "adapter":
        extra = ",vision" if "ImageClassifier" in code.ours else ""
        return _WITH_PACKAGE.format(code=code.ours, install=INSTALL.format(extra=extra))
    if record["form"] == "merged":
        return _WITHOUT_PACKAGE.format(code=code.stock, subfolder="")
    if record["form"] == "full":
        return _load_whole(record["opened_by"])
    folders = record["experts"]
    load = _WITHOUT_PACKAGE.format(code=code.stock, subfolder=f', subfolder="{folders[0]}"')
    return f"{load}\n\nThe experts are in {', '.join(f'`{folder}`' for folder in folders)}."


def _load_whole(opened_by: Mapping[str, Any]) -> str:
    """Return the code that opens a whole model."""
    if opened_by["library"] == "timm":
        return _WHOLE_TIMM
    tokenizer = '\ntokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID_OF_THIS_MODEL")'
    names = [opened_by["class"], *["AutoTokenizer"] * bool(opened_by.get("tokenizer"))]
    return _WHOLE.format(
        names=", ".join(sorted(names)), auto=opened_by["class"], tokenizer=tokenizer if len(names) > 1 else ""
    )


def expert_sections(expert: int, method: str, base: str, code: BaseCode) -> list[str]:
    """Return the text of the card of one expert's folder.

    Args:
        expert: The router's index of the expert.
        method: Name of the method.
        base: Words for the base model.
        code: Builds the base model.
    """
    return [
        f"Expert {expert} of a routed mixture of LoRAs (moe-adapt, method `{method}`) on {base}, as an "
        "ordinary LoRA of one rank with `lora_alpha = r`: any program that reads LoRA reads it alike. **The "
        "router that chose between the experts is not part of it.**",
        "## How to load\n\n" + _WITHOUT_PACKAGE.format(code=code.stock, subfolder=""),
        "## Limits\n\n* " + _LIMITS["experts"][0].split(" The results")[0],
    ]


def results(dataset: str | None, metrics: Mapping[str, float]) -> str:
    """Return the table of results.

    Args:
        dataset: What they were measured on.
        metrics: Names and values.
    """
    if not metrics:
        return "None were given when the adapter was exported."
    rows = [(f"`{name}`", f"{value:.4g}") for name, value in sorted(metrics.items())]
    return (f"Measured on {dataset}.\n\n" if dataset else "") + table(("metric", "value"), rows)


def stream_section(stream: Mapping[str, Any]) -> list[str]:
    """Return the section with the accuracy on every task after every task; none without a stream.

    Args:
        stream: What a run over a task stream found, as in its ``result.json``.
    """
    if not stream:
        return []
    matrix, names = stream["accuracy_matrix"], [str(task["name"]) for task in stream["tasks"]]
    rows = []
    for name, row in zip(names, matrix["correct"], strict=True):
        cells = zip(row, matrix["total"], strict=True)
        rows.append(
            (f"after {name}", *(f"{right / total:.3f}" if right >= 0 else "" for right, total in cells))
        )
    note = "Accuracy on each task (columns) after learning each task (rows)."
    return [f"## Task by task\n\n{note}\n\n" + table(("", *names), rows)]


def gap_section(record: Mapping[str, Any]) -> list[str]:
    """Return the section on what merging lost; none for the other forms."""
    if record["form"] not in ("merged", "full"):
        return []
    parts = ["## The gap to the routed model", _how_merged(record)]
    gap = record["gap"]
    if gap is None:
        parts.append("It was not measured.")
    else:
        rows = [
            ("compared rows", gap["rows"]),
            ("mean KL divergence (nats)", f"{gap['kl_mean']:.3e}"),
            ("largest KL divergence", f"{gap['kl_max']:.3e}"),
            ("same highest class", f"{gap['agreement']:.4f}"),
        ]
        if gap["accuracy_routed"] is not None:
            rows += [
                ("accuracy, routed", f"{gap['accuracy_routed']:.4f}"),
                ("accuracy, merged", f"{gap['accuracy_merged']:.4f}"),
            ]
        where = f" on {record['gap_data']} rows" if record.get("gap_data") else ""
        parts += [f"Measured{where}:", table(("gap", "value"), rows)]
    return ["\n\n".join(parts)]


def _how_merged(record: Mapping[str, Any]) -> str:
    if record["gates"] == "constant":
        how = "The gates of this adapter are the same for every token, so stacking the experts is exact."
    else:
        how = (
            f"Every gate was replaced by its mean over {record['calibration']['tokens']:,} tokens "
            f"({record['calibration']['data']} rows), and the experts were stacked with these weights."
        )
    if record["form"] == "full":
        how += f" The sum was added to the weights of the base, in {record['dtype']}."
    if record["largest_error"] > 0:
        how += (
            f" The stack was then cut to rank {record['rank']} by a singular value decomposition, with a "
            f"relative error (Frobenius norm) of at most {record['largest_error']:.3f} in a layer."
        )
    return how


def limits(record: Mapping[str, Any]) -> str:
    """Return the list of limits."""
    form = record["form"]
    special = _LIMITS.get(form, [])
    if record["word"] == "lossless" and form in ("merged", "full"):
        special = []
    base = _HOLDS if form == "full" else _FITS
    return "\n".join(f"* {limit}" for limit in [*special, base, *_COMMON_LIMITS])


def provenance(manifest: Mapping[str, Any]) -> str:
    """Return command, seed and versions."""
    if not manifest:
        return "No run manifest was given when the adapter was exported."
    parts = []
    if command := manifest.get("command"):
        parts.append(f"```bash\n{command}\n```")
    if (seed := manifest.get("seed")) is not None:
        parts.append(f"Seed {seed}.")
    if commit := manifest.get("git_commit"):
        parts.append(f"Commit `{commit}`.")
    if versions := manifest.get("versions"):
        parts.append(table(("package", "version"), sorted(versions.items())))
    return "\n\n".join([*parts, "The whole manifest is in `manifest.json`."])
