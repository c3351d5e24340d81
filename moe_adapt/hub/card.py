"""The model card (README.md) of an export: metadata for the Hub and the text that a reader needs.

Everything in it comes from the adapter itself, from the run's manifest and from the metrics that are passed
in. The metadata never holds a path of the machine that trained the adapter: a base model in a local folder is
named in the text by the folder's name only.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor

from moe_adapt.hub import card_text as text
from moe_adapt.hub.base_code import BaseCode, is_timm_model
from moe_adapt.hub.card_use import use_section

__all__ = ["About", "card_metadata", "expert_card", "hub_id", "make_card"]

TAGS = ["moe-adapt", "mixture-of-experts", "lora", "routed-lora"]

_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}

#: Names of metrics on the Hub, where they differ from ours.
_METRICS = {"acc": "accuracy", "acc_norm": "accuracy", "final_accuracy": "accuracy"}


@dataclass(frozen=True)
class About:
    """What an export cannot know from the model itself; all of it is for the card.

    Attributes:
        base_model: Id of the base model on the Hub, where the model does not know it.
        task: Task in the Hub's words, such as text-classification; None derives it from the adapter.
        dataset: What the metrics were measured on.
        metrics: Names and values.
        manifest: The run's manifest: command, seed, versions and so on; also written as ``manifest.json``.
        load_code: Python that builds the base model.
        stream: What a run over a task stream found, as in its ``result.json``.
        license: Identifier of the adapter's licence, such as apache-2.0; it has to suit that of the base.
        answering: How new rows are put to the model; written with the files of its tokenizer.
    """

    base_model: str | None = None
    task: str | None = None
    dataset: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    load_code: BaseCode | None = None
    stream: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    answering: Mapping[str, Any] = field(default_factory=dict)

    def public_answering(self) -> dict[str, Any]:
        """Return `answering` with the tokenizer's name in the place of its folder on this machine."""
        name = self.answering.get("tokenizer")
        folder = isinstance(name, str) and Path(name).exists()
        return {**self.answering, "tokenizer": Path(name).name} if folder else dict(self.answering)  # type: ignore[arg-type]

    def measured(self) -> dict[str, float]:
        """Return the metrics, those of the stream included; what was not measured is left out."""
        stream = self.stream.get("metrics") or {}
        found = {**self.metrics, **{f"stream/{name}": value for name, value in stream.items()}}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def hub_id(name: str | None) -> str | None:
    """Return `name` if it can be the id of a model on the Hub; None for folders, timm's and empty names.

    >>> hub_id("sentence-transformers/all-MiniLM-L6-v2"), hub_id("/models/mini"), hub_id("")
    ('sentence-transformers/all-MiniLM-L6-v2', None, None)
    """
    if not name or not re.fullmatch(r"[\w.-]*\w[\w.-]*(/[\w.-]*\w[\w.-]*)?", name):
        return None
    return None if Path(name).exists() or is_timm_model(name) else name


def make_card(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    about: About,
    title: str,
) -> ModelCard:
    """Write the card of one export.

    Args:
        config: The routed adapter's configuration, as in ``adapter_config.json``.
        tensors: The routed adapter's tensors.
        record: What ``export.json`` holds.
        about: What else is known.
        title: Heading, and the model's name in the metadata.
    """
    base_model = about.base_model or config.get("base_model_name_or_path")
    identifier = hub_id(base_model)
    task = about.task or _TASKS.get(config.get("task_type") or "")
    tags = [tag for tag in TAGS if tag != "routed-lora" or record["form"] == "adapter"]
    libraries = {"experts": None, "full": (record.get("opened_by") or {}).get("library")}
    data = card_metadata(
        title,
        about,
        library=libraries.get(record["form"], "peft"),  # the root of `experts` is no adapter of PEFT
        base_model=identifier,
        relation="finetune" if record["form"] == "full" else "adapter",
        task=task,
        tags=[*tags, *["continual-learning"] * bool(about.stream), config["method"]],
    )
    code = about.load_code or BaseCode.of_hub_model(identifier, config.get("task_type"))
    sections = [
        f"# {title}",
        text.introduction(record, config["method"], text.describe_base(base_model, identifier)),
        "## Experts\n\n" + text.experts(config, tensors),
        *use_section(about.public_answering(), record["form"]),
        "## How to load\n\n" + text.how_to_load(record, code),
        "## Results\n\n" + text.results(about.dataset, about.measured()),
        *text.stream_section(about.stream),
        *text.gap_section(record),
        "## Limits\n\n" + text.limits(record),
        "## Where it comes from\n\n" + text.provenance(about.manifest),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def expert_card(config: Mapping[str, Any], about: About, title: str, expert: int) -> ModelCard:
    """Write the card of one expert's folder.

    Args:
        config: The routed adapter's configuration.
        about: What else is known; results are those of the whole mixture and left out.
        title: Name of the whole export.
        expert: The router's index of the expert.
    """
    base_model = about.base_model or config.get("base_model_name_or_path")
    identifier = hub_id(base_model)
    name = f"{title}, expert {expert}"
    alone = replace(about, metrics={}, stream={})
    task = about.task or _TASKS.get(config.get("task_type") or "")
    tags = [tag for tag in TAGS if tag != "routed-lora"]
    data = card_metadata(name, alone, library="peft", base_model=identifier, task=task, tags=tags)
    code = about.load_code or BaseCode.of_hub_model(identifier, config.get("task_type"))
    described = text.describe_base(base_model, identifier)
    sections = [f"# {name}", *text.expert_sections(expert, config["method"], described, code)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def card_metadata(
    title: str,
    about: About,
    *,
    library: str | None,
    base_model: str | None,
    task: str | None,
    tags: list[str],
    relation: str = "adapter",
) -> ModelCardData:
    """Return the metadata that the Hub reads.

    Args:
        title: Name of the model.
        about: What is known of its training.
        library: The library that loads the folder itself; None if none does.
        base_model: Id of the base model on the Hub; None for one that has none.
        task: Task in the Hub's words.
        tags: Tags; that of the base model is added.
        relation: What it is to the base model, in the Hub's words.
    """
    return ModelCardData(
        library_name=library,
        license=about.license,
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        tags=[*tags, *[f"base_model:{relation}:{base_model}"] * bool(base_model and library)],
        datasets=[about.dataset] if about.dataset and _on_the_hub(about.dataset) else None,
        pipeline_tag=task,
        model_name=title,
        eval_results=_eval_results(task, about),
        metrics=sorted({_metric_type(name) for name in about.measured()}) or None,
    )


def _on_the_hub(name: str) -> bool:
    """Return whether a data set can be one of the Hub's: no file."""
    plain = re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    return plain is not None and not Path(name).exists() and not re.search(r"\.[a-z]+(\.gz)?$", name)


def _metric_type(name: str) -> str:
    kind = name.rsplit("/", 1)[-1]
    return _METRICS.get(kind, kind)


def _eval_results(task: str | None, about: About) -> list[EvalResult] | None:
    if not (task and about.dataset and about.measured()):
        return None
    return [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w./-]+", "-", about.dataset).lower(),
            dataset_name=about.dataset,
            metric_type=_metric_type(name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in sorted(about.measured().items())
    ]
