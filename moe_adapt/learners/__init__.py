"""Continual learners and the heads that they share."""
