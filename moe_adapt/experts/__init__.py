"""Banks of experts: the stacked LoRA factors of one site, the mixture that they compute, edits of a pool."""

from moe_adapt.experts.bank import ExpertBank
from moe_adapt.experts.chain import ChainBank, ChainKind
from moe_adapt.experts.edit_bank import (
    EditedFactors,
    MergeMethod,
    edit_factors,
    edit_shared_factors,
    pad_rank,
)
from moe_adapt.experts.film import FilmBank, FilmKind
from moe_adapt.experts.kinds import BANKS, BankKind, LoraKind
from moe_adapt.experts.low_rank import concatenate, inner_product, truncate
from moe_adapt.experts.pool_edit import PoolEdit
from moe_adapt.experts.rank_space import RankSpaceBank
from moe_adapt.experts.slices import SlicesKind

__all__ = [
    "BANKS",
    "BankKind",
    "ChainBank",
    "ChainKind",
    "EditedFactors",
    "ExpertBank",
    "FilmBank",
    "FilmKind",
    "LoraKind",
    "MergeMethod",
    "PoolEdit",
    "RankSpaceBank",
    "SlicesKind",
    "concatenate",
    "edit_factors",
    "edit_shared_factors",
    "inner_product",
    "pad_rank",
    "truncate",
]
