"""The base model of a composed adapter, its tokeniser, and the features of texts inside it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from moe_adapt.backbones.pretrained import load_pretrained
from moe_adapt.data.hub_access import check_reachable
from moe_adapt.data.packages import local_model
from moe_adapt.errors import UserError
from moe_adapt.tuner.blocks import block_features, block_paths, hidden_of

__all__ = ["continues", "longest", "open_base", "open_tokenizer", "text_features", "token_batches"]

_AUTO = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}


def open_base(backbone: str, task: str | None) -> nn.Module:
    """Return the base model, frozen and in evaluation mode.

    Args:
        backbone: Name on the Hub, or folder.
        task: PEFT's name of the adapters' task; None looks at what the model was saved as.

    Raises:
        UserError: If it cannot be loaded.
    """
    if task is None:
        try:
            architectures = AutoConfig.from_pretrained(_here(backbone)).architectures or []
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot load the backbone {backbone!r}: {reason}") from error
        if architectures and architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
            task = "CAUSAL_LM"
    model = load_pretrained(_AUTO.get(task or "", AutoModel), backbone, "float32", new_head=True).model
    config: Any = model.config
    if config.pad_token_id is None and config.eos_token_id is not None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return model.eval().requires_grad_(False)


def continues(model: nn.Module) -> bool:
    """Return whether a base model is a language model that continues texts."""
    can = getattr(model, "can_generate", None)
    return callable(can) and bool(can()) and not getattr(model.config, "is_encoder_decoder", False)


def open_tokenizer(backbone: str) -> Any:
    """Return the tokeniser, which pads with the end of text if it has nothing else.

    Raises:
        UserError: If it cannot be loaded.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(_here(backbone))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load the tokeniser of {backbone!r}: {reason}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _here(backbone: str) -> str:
    """Return where a model is, after a look whether it can be had."""
    where = local_model(backbone)
    check_reachable(where)
    return where


def longest(tokenizer: Any, model: nn.Module, asked: int | None = None) -> int:
    """Return how many tokens of a text are read."""
    config: Any = getattr(model, "config", None)
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512, 512]
    return min([*limits, *([asked] if asked else [])])


def token_batches(
    tokenizer: Any, texts: Sequence[str], max_length: int, batch_size: int = 32
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield the numbers of texts of like length, and their tokens."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in numbers],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        yield numbers, {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def text_features(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], max_length: int, blocks: Sequence[int] = ()
) -> dict[int, Tensor]:
    """Return the features of texts after some blocks of a base model, float32 [M, d] each.

    Args:
        model: The base model, without adapters.
        tokenizer: Its tokeniser.
        texts: The texts.
        max_length: Tokens read of each.
        blocks: After how many blocks; none takes all numbers.

    Raises:
        UserError: If the model has no such block, or a text is empty.
    """
    empty = next((i for i, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise UserError(f"example {empty} is an empty text; leave it out.")
    paths = block_paths(model)
    wanted = list(blocks) or list(range(1, len(paths) + 1))
    if not set(wanted) <= set(range(1, len(paths) + 1)):
        raise UserError(f"the model has blocks 1 to {len(paths)}, not {wanted}.")
    device = next(model.parameters()).device
    rows: dict[int, list[Any]] = {block: [None] * len(texts) for block in wanted}
    seen: dict[int, Tensor] = {}
    mask: list[Tensor] = []

    def keep(block: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            seen[block] = block_features(hidden_of(output), mask[-1]).cpu()

        return hook

    handles = [model.get_submodule(paths[b - 1]).register_forward_hook(keep(b)) for b in wanted]
    try:
        for numbers, batch in token_batches(tokenizer, texts, max_length):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            mask.append(batch["attention_mask"].bool())
            model(**batch)
            for block in wanted:
                for place, number in enumerate(numbers):
                    rows[block][number] = seen[block][place]
    finally:
        for handle in handles:
            handle.remove()
    return {block: torch.stack(found) for block, found in rows.items()}
