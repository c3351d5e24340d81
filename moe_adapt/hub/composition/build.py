"""Compose adapters that were trained apart into one, with a router over whole samples.

    compose({"bank": "lora/bank", "news": "lora/news"}, {"bank": bank_texts, "news": news_texts},
            backbone="sentence-transformers/all-MiniLM-L6-v2", to="composed")

Nothing is trained but statistics: the mean hidden states of the examples in a middle layer of the base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.hub.composition.base import continues, longest, open_base, open_tokenizer, text_features
from moe_adapt.hub.composition.card import compose_card
from moe_adapt.hub.composition.folder import Record, write_folder
from moe_adapt.hub.composition.ingredients import (
    check_together,
    head_of,
    head_tensors,
    linear_shapes,
    read_all,
    stack_site,
    task_of,
    without_base_tensors,
)
from moe_adapt.hub.composition.summary import ComposeReport, examples_seen
from moe_adapt.hub.composition.tokens import Example, TokenRouter, asked, labels_of, train_text_gate
from moe_adapt.hub.folder import check_target, new_folder
from moe_adapt.hub.load import check_adapter_folder
from moe_adapt.registry import Spec
from moe_adapt.routing.sample import SAMPLE_ROUTERS, LdaRouter, SampleRouter, leave_one_out, leave_out_of
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.peft_plugin import PREFIX
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.sample_tensors import HOLDER, head_name, rule_name
from moe_adapt.tuner.site import SiteSpec
from moe_adapt.tuner.stock_lora import StockLora

__all__ = ["NEAR", "ComposeReport", "Composer", "compose"]

_ROOT = "base_model.model."
_SAMPLES = f"{_ROOT}{HOLDER}."
#: Blocks whose leave-one-out accuracies differ by less are as good as each other; the earliest is cheapest.
NEAR = 0.005
#: Share of a new expert's examples below which another block may tell the experts apart better.
_FEW = 0.9
#: Where samples are routed, layers have no router of their own.
_BY_SAMPLE = {"method": "soft", "scorer": "uniform", "selector": "dense"}


@dataclass
class Composer:
    """A base model with what is composed on it.

    Attributes:
        model: The base model, without adapters.
        tokenizer: Its tokeniser; None if experts are chosen by ids alone.
        loras: The adapters by name, in order.
        router: The router over samples; None if experts are chosen by ids alone, or token by token.
        record: What becomes ``compose.json``.
        tokens: The router over tokens, if there is one.
        left_out: Where each new expert's examples go if `lda` has not seen them.
        hint: What to do about it.
    """

    model: nn.Module
    tokenizer: Any
    loras: dict[str, StockLora]
    router: SampleRouter | None
    record: Record
    tokens: TokenRouter | None = None
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    hint: str = ""

    def features(self, texts: Sequence[str]) -> Tensor:
        """Return the features of texts at the router's block, [M, d]."""
        block = self.record.block
        return text_features(self.model, self.tokenizer, texts, self.record.max_length, [block])[block]

    def observe_all(self, examples: Mapping[str, Sequence[Example]], layer: str | int) -> None:
        """Show the router the examples of every expert, at a block that is given or chosen.

        Args:
            examples: Texts by expert, perhaps with labels.
            layer: After how many blocks; ``auto`` takes the one at which examples that are left out find
                their own expert most often.

        Raises:
            UserError: If the layer is none of the model's.
        """
        assert self.router is not None
        if layer != "auto" and (isinstance(layer, bool) or not str(layer).isdigit() or int(layer) < 1):
            raise UserError(f"the layer is a number of blocks from 1, or auto, got {layer!r}.")
        wanted = [] if layer == "auto" else [int(layer)]
        found: dict[int, dict[str, Tensor]] = {}
        for uid, own in examples.items():
            texts = [asked(example) for example in own]
            by_block = text_features(self.model, self.tokenizer, texts, self.record.max_length, wanted)
            for block, features in by_block.items():
                found.setdefault(block, {})[uid] = features
        labels = {uid: labels_of(own) for uid, own in examples.items()}
        told = labels if isinstance(self.router, LdaRouter) else {}
        self.record.block = self._choose(found, told) if layer == "auto" else int(layer)
        chosen = found[self.record.block]
        for uid, features in chosen.items():
            self.router.observe(features, uid, labels[uid])
        self._leave_out(chosen, labels)

    def observe_new(self, uid: str, examples: Sequence[Example]) -> None:
        """Show the router the examples of one more expert, at the block of the others.

        Args:
            uid: The expert.
            examples: What it is for, perhaps with labels.
        """
        assert self.router is not None
        features, labels = self.features([asked(example) for example in examples]), labels_of(examples)
        self.router.observe(features, uid, labels)
        self._leave_out({uid: features}, {uid: labels})
        went = self.left_out.get(uid, {})
        if self.record.auto and went.get(uid, 0) < _FEW * sum(went.values()):
            self.hint = (
                f"block {self.record.block} was chosen without {uid!r}; compose anew with all examples "
                "to look for a better one"
            )

    def _leave_out(self, features: Mapping[str, Tensor], labels: Mapping[str, list[str | None]]) -> None:
        if isinstance(self.router, LdaRouter) and len(self.router.uids) > 1:
            self.left_out = leave_out_of(self.router, features, labels).routes

    def enter(self, uid: str, examples: Sequence[Example]) -> None:
        """Write down what an expert is made of."""
        seen = examples_seen(self.router, uid, labels_of(examples))
        self.record.experts[uid] = {"source": self.loras[uid].source, **seen}

    def gate(
        self, uid: str, examples: Sequence[Example], trained: Mapping[str, Tensor] | None = None
    ) -> None:
        """Give an expert its gates for the router over tokens: those that are given, or new ones.

        Args:
            uid: The expert.
            examples: What it is for.
            trained: Gate vectors [d] by layer, if there are any.

        Raises:
            UserError: If there is neither, or they cannot be trained.
        """
        assert self.tokens is not None
        if trained is None:
            size, source = self.record.max_length, self.loras[uid].source
            trained = train_text_gate(self.tokens, self.model, self.tokenizer, source, list(examples), size)
        self.tokens.gates[uid] = dict(trained)

    def _choose(
        self, found: Mapping[int, Mapping[str, Tensor]], labels: Mapping[str, list[str | None]]
    ) -> int:
        """Return the block that tells the experts apart best, the middle one if that cannot be seen."""
        judged = len(next(iter(found.values()))) > 1
        scores = {}
        if judged:
            scores = {b: leave_one_out(own, labels=labels).accuracy for b, own in found.items()}
        scores = {block: score for block, score in scores.items() if score == score}
        if not scores:
            return max(1, (max(found) + 1) // 2)
        self.record.auto = {str(block): round(score, 4) for block, score in scores.items()}
        best = max(scores.values())
        return next(block for block, score in scores.items() if score >= best - NEAR)

    def adapter(self, sites: Mapping[str, int] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return configuration and tensors of the adapter.

        Args:
            sites: Least rank of each layer, so that an expert's tensors keep their shape.
        """
        order = [
            s for s in linear_shapes(self.model) if any(s in lora.factors for lora in self.loras.values())
        ]
        specs, tensors = {}, {}
        for site in order:
            names, a, b = stack_site(self.loras, site, (sites or {}).get(site))
            count, rank, _ = a.shape
            specs[site] = SiteSpec(count, rank, float(rank), frozen=count, uids=names).to_dict()
            tensors[f"{_ROOT}{site}.{PREFIX}A_frozen"] = a
            tensors[f"{_ROOT}{site}.{PREFIX}B_frozen"] = b
            if self.tokens is not None:
                tensors |= self.tokens.tensors(site, names, list(self.loras))
        parts = _BY_SAMPLE if self.tokens is None else self.tokens.parts(self.record.k)
        if self.tokens is None or self.router is not None:
            parts = {**parts, "sample_router": self._sample_config(tensors).to_dict()}
        return adapter_config(specs, parts, self.record), tensors

    def _sample_config(self, tensors: dict[str, Tensor]) -> SampleConfig:
        """Return how samples are routed, and put the router's and the heads' tensors beside the others."""
        names, head = list(self.loras), head_of(self.loras)
        options: dict[str, Any] = {}
        if self.router is not None:
            rule = self.router.rule()
            tensors |= {f"{_SAMPLES}{rule_name(name)}": value for name, value in rule.state_dict().items()}
            abstains = self.record.abstain > 0 and self.router.can_abstain() and not head
            options = {"shape": rule.shape, "block": self.record.block, "k": self.record.k}
            options["threshold"] = 1.0 if abstains else None
            options["adds"] = self.tokens is not None
        heads, classes = {}, {}
        for place, uid in enumerate(names if head else []):
            own = head_tensors(self.loras[uid], head)
            heads[uid] = {name: list(tensor.shape) for name, tensor in own.items()}
            classes[uid] = [tensor for tensor in own.values() if tensor.ndim == 2][-1].shape[0]
            tensors |= {f"{_SAMPLES}{head_name(place, name)}": own[name].float() for name in own}
        return SampleConfig(names, **options, head=head, heads=heads, classes=classes)


def adapter_config(specs: dict[str, Any], routing: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``; `routing` has the options that say who decides.

    A classifier says no task: PEFT would look for a head trained whole, and there is one per expert.
    """
    config = RoutedLoraConfig(
        target_modules=sorted(specs),
        num_experts=1,
        r=1,
        alpha=1.0,
        dropout=0.0,
        aux_losses=[],
        **{"modifiers": [], **routing},
        sites=specs,
        task_type=None if record.task == "SEQ_CLS" else record.task,
        base_model_name_or_path=record.base_model,
        inference_mode=True,
    )
    values = {name: value for name, value in config.to_dict().items() if name != "runtime_config"}
    assert isinstance(config, PeftConfig)
    return values | {"peft_type": str(getattr(config.peft_type, "value", config.peft_type))}


def compose(
    adapters: Sequence[str] | Mapping[str, str],
    examples: Mapping[str, Sequence[Example]] | None,
    to: str | Path,
    *,
    backbone: str | None = None,
    base: nn.Module | None = None,
    tokenizer: Any = None,
    router: Spec | None = "lda",
    layer: str | int = "auto",
    k: int = 1,
    abstain: float = 0.01,
    max_length: int | None = None,
    overwrite: bool = False,
    gates: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> ComposeReport:
    """Write one adapter that holds several LoRAs and chooses among them for every input.

    Args:
        adapters: LoRA adapters as PEFT saves them: folders or names on the Hub; a mapping names the experts.
        examples: Texts that each expert is for; a few will do, more are better. For ``lda`` also pairs of
            text and label: an expert's classes then have means of their own, if there are six examples of
            each on average and the means differ. For ``phatgoose`` and ``glider`` also pairs of prompt and
            response. None without a router, and for ``arrow``.
        to: Folder to write.
        backbone: Name or folder of the base model.
        base: The base model itself, if it is at hand; frozen by this.
        tokenizer: Its tokeniser; None takes the backbone's.
        router: Short name (``lda``, ``prototype``, ``trained``; ``arrow``, ``phatgoose``, ``glider`` decide
            for every token and layer), or mapping of name and options. None for none: experts are chosen by
            `adapter_ids` alone.
        layer: After how many blocks the router reads; ``auto`` finds out on the examples.
        k: Experts per input, or per token; 0 mixes all by their probabilities (soft).
        abstain: Share of an expert's own texts that may be taken for foreign, which the base answers; 0
            never leaves a text to the base. Only ``lda`` can; adapters with heads of their own never do.
        max_length: Tokens read of an example; None for all that the model takes, 512 at most.
        overwrite: Replace an earlier adapter in `to`.
        gates: Gate vectors [d] by expert and layer that were trained before, for ``phatgoose``, ``glider``.

    Raises:
        UserError: If an adapter, a name, an example or an option cannot be used, or `to` is in use. Nothing
            is left half written.
    """
    check_target(Path(to), overwrite)
    if (backbone is None) == (base is None):
        raise UserError("give the base model by its name (backbone), or as it is (base), and not both.")
    if k < 0 or not 0 <= abstain < 1:
        raise UserError(f"k is at least 0 and abstain in [0, 1), got {k} and {abstain}.")
    loras = read_all(adapters)
    by_token = TokenRouter.of(router)
    if by_token is not None:
        built = by_token.prompts()
    else:
        built = None if router is None else _router(router, abstain)
    _check_examples(loras, examples, built)
    if gates and (by_token is None or not by_token.has_gates):
        raise UserError("gates are for the routers phatgoose and glider.")
    model = base if base is not None else open_base(str(backbone), task_of(loras))
    loras = without_base_tensors(loras, model)
    name = check_together(loras, model, backbone)
    reads = built is not None or (by_token is not None and by_token.has_gates)
    if reads and tokenizer is None:
        tokenizer = open_tokenizer(str(backbone or getattr(model, "name_or_path", "")))
    described = None if built is None else _described(router, abstain)
    record = Record(
        backbone=backbone,
        base_model=name,
        task=task_of(loras) or ("CAUSAL_LM" if continues(model) else None),
        router=described if by_token is None else by_token.options(),
        block=0,
        k=k,
        abstain=abstain,
        max_length=longest(tokenizer, model, max_length) if reads else 0,
    )
    composer = Composer(model, tokenizer, loras, built, record, by_token)
    if by_token is not None:
        check_tokens(loras)
        for uid in list(loras) if by_token.has_gates else []:
            composer.gate(uid, (examples or {}).get(uid, ()), (gates or {}).get(uid))
    if built is not None and examples is not None:
        composer.observe_all({uid: examples[uid] for uid in loras}, layer)
    for uid in loras:
        composer.enter(uid, (examples or {}).get(uid, ()))
    return write(composer, Path(to), overwrite)


def write(
    composer: Composer, to: Path, overwrite: bool, ranks: Mapping[str, int] | None = None
) -> ComposeReport:
    """Write what a composer holds, check it, and put it in its place."""
    config, tensors = composer.adapter(ranks)
    with new_folder(to, overwrite) as work:
        write_folder(work, config, tensors, composer.router, composer.record)
        compose_card(composer.record, config, to.name).save(work / "README.md")
        check_adapter_folder(work)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return ComposeReport(to, composer.record, parameters, composer.left_out, composer.hint)


def check_tokens(loras: Mapping[str, StockLora]) -> None:
    """Refuse what cannot be routed token by token.

    Raises:
        UserError: If experts have heads of their own.
    """
    if head_of(loras):
        raise UserError(
            "adapters with heads of their own need one decision per input; arrow, phatgoose and glider "
            "decide for every token: take --router lda."
        )


def _router(spec: Spec, abstain: float) -> SampleRouter:
    return SAMPLE_ROUTERS.build(_described(spec, abstain))


def _described(spec: Any, abstain: float) -> dict[str, Any]:
    """Return name and options of a router, the share that it may leave to the base among them."""
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if options.get("name") == "lda" and abstain > 0:
        options.setdefault("abstain", abstain)
    return options


def _check_examples(
    loras: Mapping[str, StockLora],
    examples: Mapping[str, Sequence[Example]] | None,
    router: SampleRouter | None,
) -> None:
    for uid in examples or {}:
        if uid not in loras:
            raise UserError(
                f"there are examples of {uid!r}, but no such adapter.{did_you_mean(uid, loras)} "
                f"Adapters: {', '.join(loras)}."
            )
    lacking = [uid for uid in loras if not (examples or {}).get(uid)]
    if router is not None and lacking:
        raise UserError(
            f"the router needs texts that each adapter is for; there are none of {', '.join(lacking)} (give "
            "examples, or router=None to choose by adapter_ids alone)."
        )
