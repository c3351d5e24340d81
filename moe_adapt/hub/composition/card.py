"""The model card of a composed adapter."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from moe_adapt.hub.card import TAGS, hub_id
from moe_adapt.hub.composition.folder import Record
from moe_adapt.hub.composition.summary import examples_told
from moe_adapt.hub.composition.tokens import TOKEN_ROUTERS

__all__ = ["compose_card"]

_LOAD = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
}


def compose_card(record: Record, config: Mapping[str, Any], title: str) -> ModelCard:
    """Return the card.

    Args:
        record: What the adapter is made of.
        config: Its configuration.
        title: Its name.
    """
    base = hub_id(record.base_model)
    data = ModelCardData(base_model=base, library_name="peft", tags=[*TAGS, "composed"])
    auto = _LOAD.get(record.task or "", "AutoModel")
    named = base or (record.base_model or "the base model").rsplit("/", 1)[-1]
    rows = "\n".join(f"| {uid} | {examples_told(e)} |" for uid, e in record.experts.items())
    if record.router is None:
        how = "Experts are chosen by `adapter_ids` alone; without one the base answers."
    elif record.router["name"] in TOKEN_ROUTERS:
        how = (
            f"In every layer the router `{record.router['name']}` chooses for every token. Known ids win: "
            "`model(**batch, adapter_ids=[name, None, ...])`."
        )
    else:
        how = (
            f"For every input the router `{record.router['name']}` chooses by the mean hidden state after "
            f"block {record.block} of the base, once per sequence. Known ids win: "
            "`model(**batch, adapter_ids=[name, None, ...])`."
        )
    sample = config.get("sample_router") or {}
    if sample.get("threshold") is not None:
        how += " What is foreign to all experts is answered by the base."
    if sample.get("head"):
        how += " Logits of all experts' classes stand side by side; those of other experts are masked."
    code = (
        "```python\n"
        f"from peft import PeftModel\nfrom transformers import {auto}\n\nimport moe_adapt\n\n"
        f'base = {auto}.from_pretrained("{named}")\nmodel = PeftModel.from_pretrained(base, "{title}")\n```'
    )
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n"
        f"{len(record.experts)} LoRA adapters, trained apart, in one. {how}\n\n"
        f"| expert | seen by the router |\n|---|---|\n{rows}\n\n{code}\n\n"
        "An expert is added or removed without touching the others: `moe-adapt compose DIR --add ADAPTER "
        "--examples FILE`, `moe-adapt compose DIR --remove NAME`.\n"
    )
    return ModelCard(text)
