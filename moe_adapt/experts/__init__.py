"""Banks of experts: the stacked LoRA factors of one site, the mixture that they compute, edits of a pool."""

from moe_adapt.experts.bank import ExpertBank
from moe_adapt.experts.edit_bank import (
    EditedFactors,
    MergeMethod,
    edit_factors,
    edit_shared_factors,
    pad_rank,
)
from moe_adapt.experts.low_rank import concatenate, inner_product, truncate
from moe_adapt.experts.pool_edit import PoolEdit

__all__ = [
    "EditedFactors",
    "ExpertBank",
    "MergeMethod",
    "PoolEdit",
    "concatenate",
    "edit_factors",
    "edit_shared_factors",
    "inner_product",
    "pad_rank",
    "truncate",
]
