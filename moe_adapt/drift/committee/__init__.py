"""Voices that vote by how right they were lately: DriftMoE's default."""
