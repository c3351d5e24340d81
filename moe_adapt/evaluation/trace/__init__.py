"""The record of routing decisions, on disk and measured: traces of any two runs can be compared."""

from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace, TokenTable, pack_bits, unpack_bits

__all__ = ["RoutingTrace", "SiteTrace", "TokenTable", "pack_bits", "unpack_bits"]
