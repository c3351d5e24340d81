"""Opening a tokenizer, with an error that says what to do; padding and empty texts."""

from collections.abc import Iterable, Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moe_adapt.data.hub_access import check_reachable
from moe_adapt.data.packages import local_model
from moe_adapt.errors import UserError

__all__ = ["check_not_empty", "load_tokenizer", "pad_on_the_right"]


def load_tokenizer(name: str, max_length: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or a name on the Hub.

    Args:
        name: Folder, name, or alias of an installed model (``minilm``).
        max_length: Most tokens per sequence that the data will have.

    Raises:
        UserError: If there is no such tokenizer, or its model takes fewer than `max_length` tokens.
    """
    if max_length < 2:
        raise UserError(f"max_length must be at least 2, got {max_length}.")
    where = local_model(name)
    check_reachable(where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer could be loaded from {name!r}: give a folder that holds tokenizer.json, "
            "or a name on the Hub."
        ) from error
    if max_length > tokenizer.model_max_length:
        raise UserError(
            f"max_length is {max_length}, but the model of the tokenizer {name!r} takes at most "
            f"{tokenizer.model_max_length} tokens."
        )
    return tokenizer


def pad_on_the_right(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make a tokenizer pad behind the text, with its end token if it has no padding token (GPT-2, Llama).

    Padding before the text would move the positions of the real tokens.

    Raises:
        UserError: If it has neither.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"the tokenizer {name!r} has neither a padding token nor an end token, so texts of different "
                "lengths make no batch: add one to its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token


def check_not_empty(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Sequence[str]], where: str) -> None:
    """Check that every row has a token.

    Args:
        tokenizer: The tokenizer.
        texts: The texts of every row.
        where: How messages call the source.

    Raises:
        UserError: If a row is empty and the tokenizer adds no token of its own.
    """
    for row, parts in enumerate(texts):
        if not any(part.strip() for part in parts) and not tokenizer(*parts)["input_ids"]:
            raise UserError(
                f"row {row} of {where} has an empty text, which has no token: fill it in, or drop the row."
            )
