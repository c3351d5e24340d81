"""The record of routing decisions, on disk and measured: traces of any two runs can be compared."""
