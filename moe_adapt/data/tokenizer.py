"""Opening a tokenizer, with an error that says what to do."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moe_adapt.data.hub_access import check_reachable
from moe_adapt.data.packages import local_model
from moe_adapt.errors import UserError

__all__ = ["load_tokenizer"]


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
