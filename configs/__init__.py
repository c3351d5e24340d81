"""The packaged configurations; the command line resolves them by short name."""
