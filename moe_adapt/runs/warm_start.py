"""Start a training from weights that exist: of an exported adapter, a repository, or another run.

What has to agree is the shape: layers, experts, ranks, router rows. Selectors, losses, learning rates and
data may differ, so that this is also how a method's second stage gets data of its own.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.hub.fingerprint import adapter_state, fingerprint
from moe_adapt.hub.load import check_adapter_folder, read_tensors
from moe_adapt.hub.remote import fetch_folder, looks_like_repository
from moe_adapt.training.checkpoint import KEY, checkpoint_path, read_checkpoint
from moe_adapt.training.modules.base import AdaptedModule
from moe_adapt.tuner.peft_plugin import PREFIX

__all__ = ["warm_start"]


def warm_start(module: AdaptedModule, source: str, revision: str | None = None) -> list[str]:
    """Give a module the adapter of `source`, and its head where that has the same shape.

    Args:
        module: The module that is about to be trained.
        source: A run folder (its best checkpoint), an adapter that ``moe-adapt export`` wrote, or
            ``user/name`` on the Hub.
        revision: Branch, tag or commit of the repository.

    Returns:
        Names of the head's tensors that have another shape and keep their own start.

    Raises:
        UserError: If the source is not sound, its adapter has another shape, or it is a run over another base
            (an export does not say which weights its base had); the module is as it was then.
    """
    if not isinstance(getattr(module, "model", None), PeftModel):
        raise UserError("there is nothing to start from an adapter: the model has no tuner.")
    if (Path(source) / "checkpoints").is_dir():
        return _from_run(module, source)
    folder = Path(source)
    if looks_like_repository(source):
        folder = fetch_folder(source, revision)
    check_adapter_folder(folder)
    live = get_peft_model_state_dict(module.model, adapter_name="default", save_embedding_layers=False)
    found, kept = _fitting(read_tensors(folder), live, source)
    with torch.no_grad():
        set_peft_model_state_dict(module.model, found | {name: live[name] for name in kept})
    return kept


def _from_run(module: AdaptedModule, run: str) -> list[str]:
    checkpoint = read_checkpoint(checkpoint_path(run))
    record = checkpoint.get(KEY, {})
    if record.get("base") != fingerprint(module):
        raise UserError(
            f"the adapter of {run} was trained over {record.get('backbone')!r}, whose weights are not "
            f"those of {module.name!r}; use the same base model."
        )
    found, kept = _fitting(checkpoint["state_dict"], adapter_state(module), run)
    module.load_state_dict(found, strict=False)
    return kept


def _fitting(
    found: Mapping[str, Tensor], live: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors to take over and the names of the head's that do not fit."""
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{source} holds values that are not finite, such as in {broken[0]!r}.")
    other = {n for n in found.keys() | live.keys() if _shape(found.get(n)) != _shape(live.get(n))}
    experts = sorted(name for name in other if PREFIX in name)
    if experts:
        name = experts[0]
        raise UserError(
            f"{len(experts)} tensors of the adapter of {source} have another shape than the configuration's: "
            f"{name!r} is {_shape(found.get(name))} there and {_shape(live.get(name))} here; give the tuner "
            "the layers, experts and ranks that it was trained with."
        )
    return {name: t for name, t in found.items() if name not in other}, sorted(other & live.keys())


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "absent" if tensor is None else tuple(tensor.shape)
