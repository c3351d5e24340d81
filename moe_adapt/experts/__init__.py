"""Banks of experts: the stacked LoRA factors of one site and the mixture that they compute."""

from moe_adapt.experts.bank import ExpertBank, add_mixture

__all__ = ["ExpertBank", "add_mixture"]
