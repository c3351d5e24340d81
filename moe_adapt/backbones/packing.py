"""Can a language model keep the examples of a packed row apart?

transformers makes a mask per example from positions that start again, for attention in the forms ``sdpa``
and ``eager``. A model without positions of that kind (ALiBi, recurrent layers), or one whose code does not
ask for that mask, would let examples see each other. This is not read off a list of names but tried on two
texts.
"""

from typing import Any

import torch

from moe_adapt.errors import UserError

__all__ = ["check_packing"]

#: Largest difference of a logit, in standard deviations of the logits.
_NEAR = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUNDED = 5e-2


@torch.no_grad()
def check_packing(model: Any, name: str) -> None:
    """Check that a text gives the same logits behind another text as it gives alone.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        name: What it is called, for the message.

    Raises:
        UserError: If it does not.
    """
    embedding = model.get_input_embeddings().weight
    tokens = torch.arange(9, device=embedding.device).remainder(embedding.shape[0] - 1) + 1
    places = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3], device=embedding.device)
    training = model.training
    model.eval()
    try:
        together, alone = (
            model(input_ids=tokens[None, part], position_ids=places[None, part], use_cache=False).logits[0]
            for part in (slice(0, 9), slice(5, 9))
        )
    except TypeError:
        raise UserError(_refusal(name)) from None
    finally:
        model.train(training)
    alone = alone.float()
    if (together[5:].float() - alone).abs().max() > _NEAR.get(embedding.dtype, _ROUNDED) * alone.std():
        raise UserError(_refusal(name))


def _refusal(name: str) -> str:
    return (
        f"packing: in {name!r} the examples of a packed row would see each other; set packing to false and "
        "group_by_length to true, or load the model with sdpa attention."
    )
