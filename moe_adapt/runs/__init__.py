"""What a run folder is: opening one, exporting one, warm starts, names of configurations."""
