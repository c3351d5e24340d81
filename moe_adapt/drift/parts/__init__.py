"""What DriftMoE of every mode is built from: experts, inputs of the networks, the watch, what is kept."""
