"""Learning on streams that drift: DriftMoE, Hoeffding trees, streams, comparisons, prequential metrics."""
