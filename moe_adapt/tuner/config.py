"""Configuration of a routed-LoRA adapter: the dataclass that PEFT saves as ``adapter_config.json``."""

import copy
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig, PeftType

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.experts import BANKS, BankKind, LoraKind
from moe_adapt.routing import AUX_LOSSES, MODIFIERS, SCORERS, SELECTORS, ExpertLoss
from moe_adapt.tuner.lora_words import understands_lora
from moe_adapt.tuner.methods import METHODS
from moe_adapt.tuner.peft_plugin import PEFT_TYPE
from moe_adapt.tuner.pools import check_pool
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.targets import TARGET_GROUPS, option_list

__all__ = ["FORMAT_VERSION", "RoutedLoraConfig", "config_for_one_adapter"]

#: Newest version of the adapter's file format that is read; newer ones are refused. Adapters whose experts
#: are no plain LoRAs, or in pools, have version 3, those that route whole samples 2, all others 1, as in
#: older releases.
FORMAT_VERSION = 3
#: Arguments of parts that a layer supplies.
_SUPPLIED = ("in_features", "num_experts")


@understands_lora
@dataclass
class RoutedLoraConfig(PeftConfig):
    """Mixture of LoRA experts with a learned router at every adapted layer.

    Everything left at None takes the value of the method preset (`moe_adapt.tuner.methods`). PEFT's words
    lora_alpha, lora_dropout and init_lora_weights are understood too.

    Args:
        method: Preset: lora, soft, top_k, top_p, nucleus, dynmole, mola, ld_mole, adamoe, cosine, k_means,
            lora_mixer, condenser, condenser_bias, hydralora, arrow, or a control: uniform_dense,
            random_fixed, hash, router_frozen, smoe_dropout.
        target_modules: Layers that get experts: list of name endings, regular expression, ffn, attention,
            all-linear, all-conv for every 2-D convolution without groups, or moe for gate and experts of a
            base that is a mixture itself. None takes the preset's group or PEFT's LoRA defaults for the
            architecture.
        exclude_modules: Layers left out: list of name endings or regular expression.
        num_experts: Experts per layer: a number; a list spread over the depth of the model; or a mapping from
            regular expressions on the layer's path to numbers, with the optional key default. Higher: more
            parameters, memory and time per step.
        r: Rank of each expert; same forms as num_experts. Higher: more capacity and parameters per expert.
        alpha: Numerator of the LoRA scale alpha / r; same forms as num_experts. Higher: stronger updates from
            the experts.
        use_rslora: Whether the scale is alpha / sqrt(r) (rank-stabilised LoRA, arXiv 2312.03732).
        dropout: Dropout on the experts' input; one mask for all experts of a layer. Higher: more
            regularisation.
        scorer: Short name of the scorer, or mapping of name and options.
        modifiers: Logit modifiers, in order: short names or mappings.
        selector: Short name of the selector, or mapping of name and options.
        aux_losses: Auxiliary losses: mappings of name, weight and options.
        shared_a: Whether the experts of a layer share their down-projection `A` (HydraLoRA).
        bank: What an expert is: lora, film (a scale and a shift of one LoRA's hidden vector), chain (a matrix
            in its rank space, passed several times) or slices (a slice of it); a short name or a mapping.
        experts_from: Stock LoRA adapters to use as frozen experts, so that only the router is trained:
            folders or names on the Hub (OWNER/NAME, OWNER/NAME/SUBFOLDER, with @REVISION), or a mapping of
            names of experts to them. Layers, ranks and scales are theirs. An empty list is none, which takes
            back on the command line what a configuration says.
        leave_out_whole: Whether modules that adapters of `experts_from` trained whole, such as a language
            head, are left out with a warning; otherwise such adapters are refused. Heads of classes are
            left out in any case.
        pool: Which layers have their experts together, each with a router of its own: by (shape or name:
            layers of one shape, or of one name and shape) and sites (how many adjacent ones; null for all).
            Then num_experts counts the experts of a pool. An empty mapping is none.
        compute_dtype: Dtype of the experts' matrix products: adapter (that of the expert weights, as PEFT's
            LoRA) or base (that of the layer's input; faster on half-precision bases).
        granularity: What one decision of a convolution's router covers: each position of its output, or the
            image. Linear layers decide per token.
        init_weights: Whether experts start at zero (`B = 0`); otherwise `B` is random, for tests.
        modules_to_save: Modules trained and saved whole beside the experts, such as a classification head.
        layers_to_transform: Indices of the blocks to adapt; None adapts all. With a list of names or a target
            group, not with a regular expression.
        layers_pattern: Name of the block list that layers_to_transform counts, such as layers.
        bias: Only none: biases of the base stay frozen.
        sample_router: How whole samples are routed, for composed adapters (`moe_adapt.hub.compose`). Do not
            set.
        sites: Resolved values per layer. Written when the adapter is created; do not set.
        format_version: Version of the file format. Do not set.

    Raises:
        UserError: For unknown names, options out of range, or a newer file format.
    """

    method: str = field(default="top_k")
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    num_experts: int | list[int] | dict[str, int] | None = None
    r: int | list[int] | dict[str, int] | None = None
    alpha: float | list[float] | dict[str, float] | None = None
    use_rslora: bool = False
    dropout: float | None = None
    scorer: str | dict[str, Any] | None = None
    modifiers: list[str | dict[str, Any]] | None = None
    selector: str | dict[str, Any] | None = None
    aux_losses: list[str | dict[str, Any]] | None = None
    shared_a: bool | None = None
    bank: str | dict[str, Any] | None = None
    experts_from: list[str] | dict[str, str] | None = None
    leave_out_whole: bool = False
    pool: dict[str, Any] | None = None
    compute_dtype: Literal["adapter", "base"] = "adapter"
    granularity: Literal["position", "image"] = "position"
    init_weights: bool = True
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: Literal["none"] = "none"
    sample_router: dict[str, Any] | None = None
    sites: dict[str, dict[str, Any]] | None = None
    format_version: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(PEFT_TYPE)
        if self.method not in METHODS:
            raise UserError(
                f"unknown method {self.method!r}.{did_you_mean(self.method, METHODS)} "
                f"Known: {', '.join(METHODS)}."
            )
        self._check_experts_from()
        for name, value in METHODS[self.method].items():
            if getattr(self, name) is None:
                setattr(self, name, copy.deepcopy(value))
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, set | tuple):
                setattr(self, name, sorted(value))
        if self.format_version > FORMAT_VERSION:
            raise UserError(
                f"this adapter has file format {self.format_version}, but this moe_adapt reads up to "
                f"{FORMAT_VERSION}; upgrade moe-adapt."
            )
        self.pool = self.pool or None
        if self.pool is not None:
            check_pool(self.pool)
        if self.sample_router is not None:
            SampleConfig.of(self.sample_router)
            self.format_version = max(self.format_version, 2)
        if self.pool is not None:
            self.format_version = max(self.format_version, 3)
            if self.bank_kind().shares_factors:
                raise UserError("a pool has experts of their own factors; take bank='lora', or pool=null.")
        self._check_expressions()
        self._check_layers()
        self._check_numbers()
        self._check_components()
        self._check_bank()

    def bank_kind(self) -> BankKind:
        """Return what the experts are."""
        return BANKS.build(self.bank)  # type: ignore[arg-type]

    def _check_bank(self) -> None:
        kind = self.bank_kind()
        if type(kind) is LoraKind:
            return
        self.format_version = FORMAT_VERSION
        label = f"bank={self.bank!r}"
        for name in ("shared_a", "experts_from", "sample_router"):
            if getattr(self, name):
                raise UserError(f"{label} and {name} exclude each other; leave one of them out.")
        if not kind.shares_factors:
            return
        scorer, _ = SCORERS.resolve(self.scorer, _SUPPLIED)  # type: ignore[arg-type]
        readers = [f"the scorer {self.scorer!r}"] if scorer.from_bank else []
        for loss in self.aux_losses or []:
            if issubclass(AUX_LOSSES.resolve(loss)[0], ExpertLoss):
                readers.append(f"the loss {loss!r}")
        if readers:
            raise UserError(
                f"{readers[0]} reads factors of each expert, but with {label} all have the same; take "
                "another, or bank='lora'."
            )

    def _check_experts_from(self) -> None:
        self.experts_from = self.experts_from or None
        if self.experts_from is None or self.sites is not None:
            return
        for name in ("target_modules", "num_experts", "r", "alpha", "shared_a", "pool"):
            value = getattr(self, name)
            if value is not None and value == METHODS[self.method].get(name):
                setattr(self, name, None)  # what a packaged method says of its own experts
            elif value is not None:
                raise UserError(
                    f"{name} and experts_from exclude each other: layers, number, ranks and scales of the "
                    "experts are those of the adapters."
                )

    def _check_expressions(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    re.compile(value)
                except re.error as error:
                    raise UserError(f"{name}={value!r} is not a regular expression: {error}.") from error

    def _check_layers(self) -> None:
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError(
                "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
            )
        expression = isinstance(self.target_modules, str) and self.target_modules not in (
            *TARGET_GROUPS,
            "all-linear",
            "all-conv",
        )
        for name in ("layers_to_transform", "layers_pattern"):
            if expression and getattr(self, name) is not None:
                raise UserError(
                    f"`{name}` cannot be used when `target_modules` is a str. Put the numbers of the blocks "
                    "into the regular expression, or give a list of names or a target group."
                )

    def _check_numbers(self) -> None:
        for name in ("num_experts", "r"):
            for value in option_list(getattr(self, name)):
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise UserError(f"{name} must be a whole number of at least 1, got {value!r}.")
        for value in option_list(self.alpha):
            if not value > 0:
                raise UserError(f"alpha must be positive, got {value!r}.")
        if not 0 <= self.dropout < 1:  # type: ignore[operator]
            raise UserError(f"dropout must be in [0, 1), got {self.dropout!r}.")
        if self.bias != "none":
            raise UserError(
                f"bias={self.bias!r} is not supported; routed LoRA leaves biases frozen (bias='none')."
            )
        if self.compute_dtype not in ("adapter", "base"):
            raise UserError(f"compute_dtype is 'adapter' or 'base', got {self.compute_dtype!r}.")
        if self.granularity not in ("position", "image"):
            raise UserError(f"granularity is 'position' or 'image', got {self.granularity!r}.")

    def needs_start(self) -> bool:
        """Return whether a loss compares experts with their start."""
        classes = [AUX_LOSSES.resolve(loss)[0] for loss in self.aux_losses or []]
        return any(issubclass(cls, ExpertLoss) and cls.needs_start for cls in classes)

    def routes_samples(self) -> bool:
        """Return whether decisions are made once per sample, and not by the layers."""
        return self.sample_router is not None and not SampleConfig.of(self.sample_router).adds

    def needs_anchor(self) -> bool:
        """Return whether a loss compares routers with their start."""
        return any(AUX_LOSSES.resolve(loss)[0].needs_anchor for loss in self.aux_losses or [])

    def _check_components(self) -> None:
        scorer, _ = SCORERS.resolve(self.scorer, _SUPPLIED)  # type: ignore[arg-type]
        selector, _ = SELECTORS.resolve(self.selector, _SUPPLIED)  # type: ignore[arg-type]
        for modifier in self.modifiers or []:
            MODIFIERS.resolve(modifier, _SUPPLIED)
        for loss in self.aux_losses or []:
            AUX_LOSSES.resolve(loss)
        only = selector.only_scorer
        if only is not None and (scorer is not SCORERS.get(only) or self.modifiers):
            raise UserError(
                f"the selector {self.selector!r} is exact for the scorer {only!r} without modifiers only; "
                "take these, or another selector such as top_k."
            )
        if self.needs_anchor() and scorer.rows is None:
            raise UserError(
                f"the loss routing_anchor holds the rows of a linear scorer, which {self.scorer!r} has not; "
                "drop it, or take scorer='linear'."
            )


def config_for_one_adapter(config: PeftConfig) -> PeftConfig:
    """Return the configuration for one more adapter: the object itself at its first use, later a copy.

    PEFT's models of tasks write into the object that they were given, and read it back from the tuner. An
    adapter writes its layers into it, so that a later one gets a copy of what was asked for at first.

    Args:
        config: What the caller gave.
    """
    asked = vars(config).get("_asked")
    if asked is None:
        asked = {name: getattr(config, name) for name in ("sites", "target_modules", "exclude_modules")}
        vars(config)["_asked"] = copy.deepcopy(asked)
        return config
    again = copy.deepcopy(config)
    vars(again).update(copy.deepcopy(asked))
    return again
