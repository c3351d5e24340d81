"""Learning on streams that drift: DriftMoE, Hoeffding trees, streams, comparisons, prequential metrics."""

from moe_adapt.extras import require

require("moe_adapt.drift", "river", "scipy")
