"""Task and stream training on Lightning: data modules, modules, callbacks, the command line."""
