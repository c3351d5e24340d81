"""Python for the card that builds the base model: through this package, and without it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_adapt.backbones.text import resolve_pooling
from moe_adapt.data.packages import public_name
from moe_adapt.extras import LazyModule

__all__ = ["BaseCode", "is_timm_model"]

timm = LazyModule("timm")

#: What `moe_adapt.training.modules.PooledClassifier` does, for readers who do not install the package.
_POOLED = """\
import torch
from transformers import AutoModel


class PooledClassifier(torch.nn.Module):
    def __init__(self, encoder, num_classes):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self.classifier = torch.nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, input_ids, attention_mask, **inputs):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.classifier((hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))


encoder = AutoModel.from_pretrained({name!r}{quantized})
if getattr(encoder, "pooler", None) is not None:
    encoder.pooler = None
base = PooledClassifier(encoder, num_classes={num_classes})"""

#: What a quantised base imports.
_BOTH = "AutoModel, BitsAndBytesConfig\n"

_AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}


def is_timm_model(name: str) -> bool:
    """Return whether timm, if it is installed, has a model of this name."""
    return find_spec("timm") is not None and timm.is_model(name)


@dataclass(frozen=True)
class BaseCode:
    """Two ways to build the base model as `base`; neither names a path of the machine that trained.

    Attributes:
        ours: Python that uses this package.
        stock: Python that does not.
    """

    ours: str
    stock: str

    @classmethod
    def of_hub_model(cls, identifier: str | None, task_type: str | None) -> "BaseCode":
        """Return the code for a model on the Hub; a placeholder if nothing is known.

        Args:
            identifier: Id of the model.
            task_type: PEFT's task type.
        """
        code = "base = ...  # the base model, built as for training"
        if identifier and task_type in _AUTO:
            code = _from_pretrained(_AUTO[task_type], identifier)
        return cls(code, code)

    @classmethod
    def of_module(cls, module_class: Any, arguments: Mapping[str, Any]) -> "BaseCode":
        """Return the code for the base model of a training module.

        Args:
            module_class: A class with the class method `base_model`.
            arguments: Arguments of its constructor; those that `base_model` knows are used.
        """
        known = {
            name: arguments.get(name, parameter.default)
            for name, parameter in inspect.signature(module_class.base_model).parameters.items()
        }
        public = {name: _without_path(value) for name, value in known.items()}
        defaults = inspect.signature(module_class.base_model).parameters
        written = [
            f"{name}={value!r}"
            for name, value in public.items()
            if value is not inspect.Parameter.empty and value != defaults[name].default
        ]
        name = module_class.__name__
        ours = (
            f"from moe_adapt.training.modules import {name}\n\nbase = {name}.base_model({', '.join(written)})"
        )
        builder = {"CausalLM": _causal_lm, "SequenceClassifier": _text, "ImageClassifier": _image}.get(name)
        return cls(ours, builder(known, public) if builder else cls.of_hub_model(None, None).stock)


def _without_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"PATH_OF/{Path(value).name}" if Path(value).exists() else public_name(value)


def _from_pretrained(auto: str, name: str, quantize: str | None = None, **options: Any) -> str:
    dtype = options.pop("dtype", "float32")
    words = [repr(name), *(f"{key}={value!r}" for key, value in options.items() if value is not None)]
    words += [f"dtype={dtype!r}"]
    call = f"{auto}.from_pretrained({', '.join(words)}{_quantized(quantize)})"
    return f"from transformers import {auto}{', BitsAndBytesConfig' * bool(quantize)}\n\nbase = {call}"


def _quantized(quantize: str | None) -> str:
    if quantize is None:
        return ""
    options = "load_in_8bit=True" if quantize == "8bit" else 'load_in_4bit=True, bnb_4bit_quant_type="nf4"'
    return f", quantization_config=BitsAndBytesConfig({options})"


def _causal_lm(known: Mapping[str, Any], public: Mapping[str, Any]) -> str:
    options = {name: public[name] for name in ("gguf_file", "dtype", "quantize")}
    return _from_pretrained("AutoModelForCausalLM", public["backbone"], **options)


def _text(known: Mapping[str, Any], public: Mapping[str, Any]) -> str:
    if resolve_pooling(known["backbone"], known["pooling"]) == "mean":
        pooled = _POOLED if public["quantize"] is None else _POOLED.replace("AutoModel\n", _BOTH, 1)
        return pooled.format(
            name=public["backbone"],
            num_classes=public["num_classes"],
            quantized=_quantized(public["quantize"]),
        )
    options = {name: public[name] for name in ("dtype", "quantize")} | {"num_labels": public["num_classes"]}
    return _from_pretrained("AutoModelForSequenceClassification", public["backbone"], **options)


def _image(known: Mapping[str, Any], public: Mapping[str, Any]) -> str:
    extra = public["model_kwargs"] or {}
    if public["library"] == "transformers":
        options = {"num_labels": public["num_classes"], "dtype": public["dtype"], **extra}
        return _from_pretrained("AutoModelForImageClassification", public["backbone"], **options)
    words = [repr(public["backbone"]), f"pretrained={public['checkpoint'] is None and public['pretrained']}"]
    words += [f"num_classes={public['num_classes']}", *(f"{key}={value!r}" for key, value in extra.items())]
    lines = ["import timm", "", f"base = timm.create_model({', '.join(words)})"]
    if public["checkpoint"] is not None:
        lines.append(f"...  # load the weights {public['checkpoint']!r} into it, all but the head")
    return "\n".join(lines)
