r"""Write an adapter and its base as one ordinary model, which transformers or timm opens by itself.

Every adapted layer gets the one weight that comes nearest to the mixture,

$$W + s \sum_e \bar g_e B_e A_e,$$

with constant gates or their means over data, rounded to the dtype of the base. Modules that were trained
whole, such as a head, take the place of the base's. The folder is opened again, every tensor is compared, and
what the opened model loses against the routed one is measured with that very model.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError
from moe_adapt.extras import LazyModule
from moe_adapt.hub.card import About
from moe_adapt.hub.export_parts import (
    Batches,
    ExportReport,
    active_adapter,
    describe,
    evaluation_mode,
    logits_of,
    report_on,
)
from moe_adapt.hub.folder import new_folder
from moe_adapt.hub.gap import gap_within
from moe_adapt.hub.merged import merge_mixture, routed_layers
from moe_adapt.hub.mixture import LowRank
from moe_adapt.tuner.peft_plugin import AuxiliaryTrainingWrapper
from moe_adapt.tuner.quantized import is_quantized
from moe_adapt.tuner.sample_routing import FOR_ROUTERS

__all__ = ["export_full"]

timm = LazyModule("timm")

#: Classes by which readers open a model of transformers, the most special first.
_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForImageClassification",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
)


def export_full(
    peft_model: PeftModel,
    to: str | Path,
    *,
    calibration: Batches | None = None,
    gap_batches: Batches | None = None,
    run: Callable[[Any], Tensor] | None = None,
    data_names: tuple[str | None, str | None] = (None, None),
    about: About | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write base and adapter as one model, with configuration, names of classes and tokenizer.

    Args:
        peft_model: The model, with one active routed-LoRA adapter on a base of transformers or timm.
        to: Folder to write.
        calibration: Batches to average gates over; needed unless they are constant.
        gap_batches: Batches to measure the gap on, best other rows than those of the calibration; None
            leaves it out.
        run: Returns the logits of a batch; None calls the model with the batch's entries but the labels.
        data_names: What the calibration and the gap's rows are called in the card.
        about: What the card should say beside what the model knows; its names of classes and its tokenizer
            go into the folder.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If the base is of a kind that no library opens by itself or is quantised, if calibration
            is needed and missing, or if what was written does not read back.
    """
    adapter, about = active_adapter(peft_model), about or About()
    tuner: Any = peft_model.base_model
    base, layers = tuner.model, routed_layers(peft_model, adapter)
    opened_by = _reader(base)
    _check_weights(base, layers)
    run = run or (lambda batch: logits_of(peft_model, batch))
    with new_folder(Path(to), overwrite) as work, evaluation_mode(peft_model):
        sites, found = merge_mixture(
            peft_model, adapter, calibration=calibration, run=run, data_name=data_names[0], for_peft=False
        )
        dtypes = sorted({str(layer.base_layer.weight.dtype).removeprefix("torch.") for layer in layers})
        exact = found["gates"] == "constant" and set(dtypes) <= {"float32", "float64"}
        record: dict[str, Any] = {"form": "full", **found, "dtype": ", ".join(dtypes)}
        record |= {"word": "lossless" if exact else "lossy", "opened_by": opened_by}
        with _plain(base, adapter, layers, sites):
            _write(base, work, about.answering.get("class_names"))
            opened = _open(base, opened_by, work)
            _compare(opened, base, work)
        if tokenizer := about.answering.get("tokenizer"):
            load_tokenizer(str(tokenizer), 2).save_pretrained(work)
            record["opened_by"] = {**opened_by, "tokenizer": True}
        replaced = partial(_replaced, tuner, opened)
        gap = None if gap_batches is None else gap_within(replaced, gap_batches, run)
        record |= {"gap": None if gap is None else gap.to_dict(), "gap_data": data_names[1]}
        describe(peft_model, adapter, work, Path(to), record, about)
    return report_on(Path(to), opened.state_dict().values(), record, gap)


def _reader(base: nn.Module) -> dict[str, Any]:
    """Return which library and class open a base by themselves.

    Raises:
        UserError: If none does.
    """
    if isinstance(base, PreTrainedModel):
        for name in _AUTO:
            known = getattr(transformers, name)._model_mapping.get(type(base.config), ())
            if type(base) in (known if isinstance(known, tuple | list) else (known,)):
                return {"library": "transformers", "class": name}
    elif hasattr(base, "pretrained_cfg"):
        return {"library": "timm", "class": "create_model"}
    raise UserError(
        f"a {type(base).__name__} is no class that transformers or timm opens by itself, so no whole model "
        "can be written: export --form merged (for classifiers of texts: train with model.pooling=model)."
    )


def _check_weights(base: nn.Module, layers: Sequence[Any]) -> None:
    """Refuse weights into which nothing can be written exactly, and those that other layers share."""
    owners: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for layer in layers:
        weight = getattr(layer.base_layer, "weight", None)
        if is_quantized(layer.base_layer):
            raise UserError(
                f"the weight of {layer.site} is quantised ({type(layer.base_layer).__name__}), so adding the "
                "experts would round it anew: export --form merged."
            )
        if len(owners[id(weight)]) > 1:
            raise UserError(
                f"the weight of {layer.site} is also {owners[id(weight)][0]!r}, which the experts must not "
                "change: export --form merged."
            )


@contextmanager
def _plain(
    base: nn.Module, adapter: str, layers: Sequence[Any], sites: Mapping[str, LowRank]
) -> Iterator[None]:
    """Put ordinary layers with the merged weights into the base while the block runs."""
    wrapped = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter in module.modules_to_save
    }
    before: dict[str, nn.Module] = {**wrapped, **{layer.site: layer for layer in layers}}
    try:
        for layer in layers:
            base.set_submodule(layer.site, _merged_layer(layer.base_layer, sites[layer.site]))
        for name, module in wrapped.items():
            base.set_submodule(name, module.modules_to_save[adapter])
        yield
    finally:
        for name, original in before.items():
            base.set_submodule(name, original)


def _merged_layer(base: nn.Module, lora: LowRank) -> nn.Module:
    """Return a copy of a layer with a change added to its weight, in the weight's dtype."""
    layer, weight = copy.copy(base), base.weight
    assert isinstance(weight, Tensor)
    delta = lora.delta_weight().to(weight.device)
    delta = (delta.t() if isinstance(base, Conv1D) else delta).reshape(weight.shape)
    wide = torch.promote_types(weight.dtype, delta.dtype)
    merged = (weight.detach().to(wide) + delta.to(wide)).to(weight.dtype)
    layer._parameters = {**base._parameters, "weight": nn.Parameter(merged, requires_grad=False)}
    return layer


def _write(base: Any, folder: Path, class_names: Sequence[str] | None) -> None:
    """Save a model as its library does, with the names of its classes."""
    if not isinstance(base, PreTrainedModel):
        settings = {"label_names": list(class_names)} if class_names else {}
        timm.models.save_for_hf(base, str(folder), model_config=settings, safe_serialization=True)
        return
    config = base.config
    base.config = copy.deepcopy(config)
    try:
        if class_names:
            base.config.id2label = dict(enumerate(class_names))
            base.config.label2id = {name: number for number, name in enumerate(class_names)}
        base.save_pretrained(folder)
    finally:
        base.config = config


def _open(base: nn.Module, opened_by: Mapping[str, Any], folder: Path) -> Any:
    """Open the folder as its readers will, on the base's device."""
    if opened_by["library"] == "timm":
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        opened = getattr(transformers, opened_by["class"]).from_pretrained(folder)
    return opened.to(next(base.parameters()).device).eval()


def _compare(opened: nn.Module, base: nn.Module, folder: Path) -> None:
    """Check that every tensor came back, in the dtype in which the folder opens."""
    mine, theirs = base.state_dict(), opened.state_dict()
    wrong = [
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine
        or name not in theirs
        or not torch.equal(mine[name].to(theirs[name].dtype), theirs[name])
    ]
    if wrong:
        raise UserError(
            f"{type(base).__name__} does not read back as it was written ({len(wrong)} tensors, such as "
            f"{sorted(wrong)[0]!r}), so {folder.name} was not kept; export --form merged."
        )


class _Opened(nn.Module):
    """The opened model in the place of the routed one: it is not told what only routers read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = getattr(model, "config", None)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        return self.model(*args, **{name: v for name, v in inputs.items() if name not in FOR_ROUTERS})


@contextmanager
def _replaced(tuner: Any, opened: nn.Module) -> Iterator[None]:
    """Let the opened model answer in the place of the routed one while the block runs."""
    routed = tuner.model
    tuner.model = _Opened(opened)
    try:
        yield
    finally:
        tuner.model = routed
