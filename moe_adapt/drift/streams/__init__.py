"""Drift streams: MOA-faithful generators, named suites, real streams."""

from moe_adapt.drift.streams.base import Concept, DriftStream
from moe_adapt.drift.streams.real import REAL_STREAMS, real_stream
from moe_adapt.drift.streams.suites import SUITES, synthetic_stream

__all__ = ["REAL_STREAMS", "SUITES", "Concept", "DriftStream", "real_stream", "synthetic_stream"]
