r"""Read stock LoRA adapters, made elsewhere, as experts.

A folder with PEFT's ``adapter_config.json`` and ``adapter_model.safetensors`` becomes one expert at every
layer that it adapts. Adapters may differ in rank, scale and layers:

* at each layer the bank holds the adapters that have it, and no others: an expert without a layer is no
  candidate there, rather than one that does nothing;
* factors are filled up with zeros to the largest rank of the layer, and `s_e / s` goes into `B_e`, where `s`
  is the scale of the layer's first adapter: both exact.

What cannot be carried over exactly is refused: DoRA, trained biases, embeddings, fused expert weights, other
adapter types, other base models, pickled weights. Copies of the base's own tensors are dropped
(`moe_adapt.tuner.saved_whole`). A classification head that was trained with an adapter is left out, with a
warning: experts share the base's. Other modules trained whole, such as a language head, are refused unless
the configuration says `leave_out_whole`.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import pad_rank
from moe_adapt.experts.conv import is_supported_convolution
from moe_adapt.reading import read_json, read_tensors
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.peft_plugin import is_supported_layer, layer_shape
from moe_adapt.tuner.saved_whole import check_whole, without_copies
from moe_adapt.tuner.site import SiteSpec

__all__ = ["StockLora", "StockSite", "check_base", "collect_sites", "read_lora", "stock_experts"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")

#: Options of PEFT's LoRA that change its arithmetic, with the values that do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, True, None),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "arrow_config": (None,),
    "use_bdlora": (False, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


@dataclass(frozen=True)
class StockLora:
    """A stock LoRA adapter.

    Attributes:
        uid: Its name as an expert.
        source: Where it was read from.
        base_model: Name of its base model, if it says so.
        factors: `A` [r, d] and `B` [o, r] by layer.
        scales: LoRA scale by layer.
        head: Tensors of the modules that were saved whole, by name in the base model.
        head_paths: Those modules.
        others: Further tensors that are no factors, by name in the base model.
        task: PEFT's name of its task, if it says so.
    """

    uid: str
    source: str
    base_model: str | None
    factors: dict[str, tuple[Tensor, Tensor]]
    scales: dict[str, float]
    head: dict[str, Tensor] = field(default_factory=dict)
    head_paths: list[str] = field(default_factory=list)
    others: dict[str, Tensor] = field(default_factory=dict)
    task: str | None = None


@dataclass(frozen=True)
class StockSite:
    """The experts of one layer, stacked.

    Attributes:
        uids: Their names.
        a: Down-projections, [E, r, d].
        b: Up-projections, [o, E, r], with the relative scales in them.
        scale: LoRA scale `s` of the layer.
    """

    uids: list[str]
    a: Tensor
    b: Tensor
    scale: float


def read_lora(source: str, uid: str | None = None) -> StockLora:
    """Read a stock LoRA adapter.

    Args:
        source: A folder, or a name on the Hub as OWNER/NAME, OWNER/NAME/SUBFOLDER or either with @REVISION.
        uid: Name of the expert; None takes the last part of `source`.

    Raises:
        UserError: If there is no such adapter, or it cannot be carried over exactly.
    """
    config_path, weights_path = (_file(source, name) for name in (_CONFIG, _WEIGHTS))
    config = read_json(config_path, f"the configuration of the adapter {source!r}", "download it again")
    tensors = read_tensors(weights_path, f"the weights of the adapter {source!r}", "download it again")
    _refuse_other_kinds(source, config)
    factors: dict[str, dict[str, Tensor]] = {}
    heads = [str(name) for name in config.get("modules_to_save") or ()]
    head: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is not None:
            factors.setdefault(match["site"], {})[match["factor"]] = tensor
        elif any(name in key.split(".") for name in heads):
            head[key.removeprefix("base_model.model.").replace(".modules_to_save", "")] = tensor
        else:
            others[key.removeprefix("base_model.model.").replace(".base_layer.", ".")] = tensor
    halves = [site for site, pair in factors.items() if len(pair) != 2]
    if not factors or halves:
        what = f"only one factor at {halves[0]!r}" if halves else "no LoRA factor"
        raise UserError(f"the adapter {source!r} holds {what}; download or export it again.")
    pairs = {site: (pair["A"].flatten(1), pair["B"].flatten(1)) for site, pair in factors.items()}
    return StockLora(
        uid=uid or source.split("@")[0].rstrip("/").rsplit("/", 1)[-1],
        source=source,
        base_model=config.get("base_model_name_or_path"),
        factors=pairs,
        scales={site: _scale(config, site, len(a)) for site, (a, _) in pairs.items()},
        head=head,
        head_paths=sorted({_module(name, heads) for name in head}),
        others=others,
        task=config.get("task_type"),
    )


def _module(name: str, heads: Sequence[str]) -> str:
    """Return the path of the saved module that a tensor belongs to."""
    parts = name.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part in heads) + 1])


def _file(source: str, name: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir() or source.startswith((".", "/", "~")):
        if (folder / name).is_file():
            return folder / name
        more = (
            " (only pickled weights, which are not loaded: save it again as safetensors)"
            if (folder / "adapter_model.bin").is_file()
            else ""
        )
        raise UserError(f"{source!r} has no {name}{more}; give the folder of a LoRA adapter saved by PEFT.")
    path, _, revision = source.partition("@")
    parts = path.split("/")
    if len(parts) < 2:
        raise UserError(f"{source!r} is neither a folder nor a name on the Hub as OWNER/NAME.")
    repository, subfolder = "/".join(parts[:2]), "/".join(parts[2:]) or None
    try:
        return Path(hf_hub_download(repository, name, subfolder=subfolder, revision=revision or None))
    except (OSError, EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot get {name} of {source!r} from the Hub: {reason}") from error


def _refuse_other_kinds(source: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{source!r} is an adapter of type {kind!r}; only plain LoRA can become an expert.")
    for option, plain in _PLAIN.items():
        if config.get(option) not in plain:
            raise UserError(
                f"{source!r} has {option}={config[option]!r}, which is more than a low-rank matrix per layer "
                "of the base as it is; only plain LoRA can become an expert."
            )


def _scale(config: Mapping[str, Any], site: str, rank: int) -> float:
    alpha = _by_pattern(config.get("alpha_pattern") or {}, site, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float], site: str, default: float) -> float:
    """Return the value of the first pattern that fits a layer, as PEFT looks it up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", site):
            return value
    return default


def collect_sites(
    adapters: Sequence[StockLora], shapes: Mapping[str, tuple[int, int]], base_name: str | None
) -> dict[str, StockSite]:
    """Stack adapters into the experts of each layer.

    Args:
        adapters: The adapters.
        shapes: In- and out-features of the base model's linear layers.
        base_name: Name of the base model; None or empty if it has none.

    Raises:
        UserError: If names repeat, an adapter belongs to another base, or a layer is missing or of another
            shape.
    """
    names = [adapter.uid for adapter in adapters]
    if len(set(names)) < len(names):
        raise UserError(
            f"the experts' names repeat ({', '.join(names)}); give a mapping of names to adapters instead."
        )
    for adapter in adapters:
        check_base(adapter, shapes, base_name)
    sites = [site for site in shapes if any(site in adapter.factors for adapter in adapters)]
    return {site: _stack([a for a in adapters if site in a.factors], site) for site in sites}


def check_base(adapter: StockLora, shapes: Mapping[str, tuple[int, int]], base_name: str | None) -> None:
    """Check that an adapter fits a base model.

    Args:
        adapter: The adapter.
        shapes: In- and out-features of the base model's linear layers.
        base_name: Name of the base model; None or empty if it has none.

    Raises:
        UserError: If it was made for another base, or a layer is missing or of another shape.
    """
    own, base = (Path(name).name if name else "" for name in (adapter.base_model, base_name))
    if own and base and own != base:
        raise UserError(
            f"the adapter {adapter.source!r} was trained on {adapter.base_model!r}, the base here is "
            f"{base_name!r}; experts of another base model cannot be used."
        )
    for site, (a, b) in adapter.factors.items():
        if site not in shapes:
            raise UserError(
                f"the adapter {adapter.source!r} adapts {site!r}, which is no linear layer of this base "
                "model; it was made for another one."
            )
        if (a.shape[1], b.shape[0]) != shapes[site] or a.shape[0] != b.shape[1]:
            raise UserError(
                f"the adapter {adapter.source!r} has factors {[*a.shape]} and {[*b.shape]} at {site!r}, "
                f"which maps {shapes[site][0]} to {shapes[site][1]} features; it was made for another base "
                "model."
            )


def _stack(adapters: Sequence[StockLora], site: str) -> StockSite:
    rank = max(len(adapter.factors[site][0]) for adapter in adapters)
    scale = adapters[0].scales[site]
    padded = []
    for adapter in adapters:
        a, b = (factor.float() for factor in adapter.factors[site])
        padded.append(pad_rank(a, b * (adapter.scales[site] / scale), rank))
    return StockSite(
        uids=[adapter.uid for adapter in adapters],
        a=torch.stack([a for a, _ in padded]),
        b=torch.stack([b for _, b in padded], dim=1),
        scale=scale,
    )


def stock_experts(config: RoutedLoraConfig, model: nn.Module) -> dict[str, StockSite]:
    """Read the adapters of `config.experts_from` and write their layers into the configuration."""
    named = config.experts_from
    pairs = named.items() if isinstance(named, dict) else [(None, source) for source in named or []]
    shapes = {
        name.removesuffix(".base_layer"): layer_shape(module)
        for name, module in model.named_modules()
        if is_supported_layer(module) or is_supported_convolution(module)
    }
    adapters = [without_copies(read_lora(source, uid), model) for uid, source in pairs]
    for adapter in adapters:
        if not config.leave_out_whole:
            check_whole(adapter, model, "; leave_out_whole=True goes without it")
        if adapter.head:
            heads = ", ".join(adapter.head_paths)
            warnings.warn(
                f"{adapter.source!r} has trained {heads} of its own, which is left out.", stacklevel=2
            )
    sites = collect_sites(adapters, shapes, getattr(model, "name_or_path", None))
    config.target_modules = "|".join(re.escape(site) for site in sites)
    config.sites = {}
    for site, experts in sites.items():
        count, rank, _ = experts.a.shape
        alpha = experts.scale * rank ** (0.5 if config.use_rslora else 1)
        config.sites[site] = SiteSpec(count, rank, alpha, frozen=count, uids=experts.uids).to_dict()
    return sites
