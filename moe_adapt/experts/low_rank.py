r"""Experts as low-rank matrices: merge, truncate and compare them whatever their gauge.

`(B M, M^-1 A)` is the same expert as `(B, A)` for any invertible `M`. So factors of different experts are
never averaged; all arithmetic is on the change of weight `D = B A`, without ever forming it [o, d]:

* concatenation `sum_i w_i B_i A_i = [w_1 B_1 ... w_m B_m] [A_1; ...; A_m]` is exact, of rank `m r`;
* truncation by SVD: with `B = Q_b R_b` and `A^T = Q_a R_a`, the singular values of `B A` are those of the
  small core `R_b R_a^T`; keeping `k` of them is the best rank-`k` approximation (Eckart-Young).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["concatenate", "inner_product", "truncate"]


def concatenate(a: Tensor, b: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return factors of the weighted sum of experts, exactly, at the sum of their ranks.

    Args:
        a: Down-projections, [m, r, d].
        b: Up-projections, [o, m, r].
        weights: Coefficients, [m].

    Returns:
        Factors [m r, d] and [o, m r]; the weights are in the second.
    """
    scaled = b * torch.as_tensor(weights, dtype=b.dtype, device=b.device)[:, None]
    return a.reshape(-1, a.shape[-1]), scaled.reshape(b.shape[0], -1)


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best approximation of `b a` of a rank, in balanced factors, and its error.

    Args:
        a: Down-projection, [R, d].
        b: Up-projection, [o, R].
        rank: Rank of the result; missing directions are zero.

    Returns:
        Factors [rank, d] and [o, rank] with `b^T b = a a^T`, in the dtype given, and the relative error in
        the Frobenius norm. The largest entry of each column of the second is positive.

    >>> a, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    >>> round(truncate(a, b, 1)[2], 4)
    0.4472
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().t())
    u, s, vt = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    up, down = (q_b @ u[:, :kept]) * root, root[:, None] * (vt[:kept] @ q_a.t())
    if kept:
        sign = up.gather(0, up.abs().argmax(dim=0, keepdim=True)).sign()
        sign[sign == 0] = 1
        up, down = up * sign, down * sign.t()
    new_a, new_b = a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
    new_a[:kept], new_b[:, :kept] = down.to(a.dtype), up.to(b.dtype)
    total = s.square().sum()
    error = float((s[kept:].square().sum() / total).sqrt()) if total > 0 else 0.0
    return new_a, new_b, error


def inner_product(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """Return `<B1 A1, B2 A2> = tr((B1^T B2) (A2 A1^T))`, the Frobenius inner product, differentiable.

    Args:
        a1: Down-projection, [..., r, d].
        b1: Up-projection, [..., o, r].
        a2: Down-projection, [..., r', d].
        b2: Up-projection, [..., o, r'].
    """
    return ((b1.transpose(-1, -2) @ b2) * (a1 @ a2.transpose(-1, -2))).sum(dim=(-1, -2))
