"""Likelihood of labelled tokens under next-token logits, and multiple choice by it."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pick_choices", "token_log_likelihood"]

#: Label of a token that is not scored, as in PyTorch's cross-entropy and in transformers.
IGNORED = -100


def token_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed log-likelihood of each sequence's labelled tokens [M], and how many there are [M].

    Args:
        logits: Next-token logits, [M, S, V].
        labels: The tokens themselves, [M, S]; -100 is left out. Position `s` is predicted from `s - 1`.
    """
    targets = labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape).sum(dim=1), (targets != IGNORED).sum(dim=1)


def pick_choices(scores: Tensor, choice_row: Tensor, rows: int) -> Tensor:
    """Return the index within its row of each row's best-scored choice, [rows].

    Args:
        scores: Score of each choice, [M].
        choice_row: Row of each choice, [M], ascending.
        rows: How many rows there are.

    >>> pick_choices(torch.tensor([-3.0, -1.0, -2.0, -5.0]), torch.tensor([0, 0, 1, 1]), rows=2)
    tensor([1, 0])
    """
    return torch.stack([scores[choice_row == row].argmax() for row in range(rows)])
